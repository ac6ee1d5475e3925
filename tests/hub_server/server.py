"""The server: a `Hub` behind a socket, with faults, a log, and a switch."""

import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from socket import SHUT_RDWR, socket
from typing import Any

from .base import HubError
from .faults import Fault, How, When
from .repository import Repo
from .routes import hub_routes, storage_routes
from .signing import check_signature
from .state import Hub, User
from .wire import Handler, Request, RequestLog, Response


class Listener(ThreadingHTTPServer):
    """The listening socket and its open connections."""

    daemon_threads = True

    def __init__(self, port: int, hub_server: "HubServer"):
        super().__init__(("127.0.0.1", port), Handler)
        self.hub_server = hub_server
        self.connections: set[socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def close(self) -> None:
        """Stop listening, and hang up on everybody."""
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(SHUT_RDWR)
            except OSError:
                pass  # the other side was quicker

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note a crash outside of `HubServer.respond`; a client that hung up is none."""
        if not isinstance(sys.exception(), OSError):
            self.hub_server.crashes.append(traceback.format_exc())


class HubServer:
    """A Hugging Face Hub on a free port of this machine, for tests.

    Two origins share the port: the Hub at `http://127.0.0.1:PORT`, which knows accounts, and the storage of large
    files at `http://localhost:PORT`, which knows signed URLs and refuses tokens. All state is in memory.

    Attributes:
        endpoint: URL of the Hub, for `HF_ENDPOINT`.
        user: The account whose write token tests are logged in with.
        state: Repositories, users, collections, `part_size`.
        requests: What was asked since the last reset, see `RequestLog.matching`.
        crashes: Tracebacks of errors in the server itself.

    Example:
        ```python
        server = HubServer()
        server.fail(("POST", r"/commit/"), status=503)  # the next commit fails
        ...
        assert server.repo("tester/model").files() == {...}
        assert len(server.requests.matching("PUT", origin="storage")) == 1
        ```
    """

    user = User("tester", orgs=("lab",))

    def __init__(self) -> None:
        self.listener = Listener(0, self)
        self.port: int = self.listener.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.storage = f"http://localhost:{self.port}"
        self.requests = RequestLog()
        self.crashes: list[str] = []
        self.faults: list[Fault] = []
        self.reset()
        self.start()

    def start(self) -> None:
        threading.Thread(target=self.listener.serve_forever, args=(0.1,), daemon=True).start()

    def stop(self) -> None:
        self.listener.close()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Within this context nobody listens: connections are refused, as with no network."""
        self.stop()
        try:
            yield
        finally:
            self.listener = Listener(self.port, self)
            self.start()

    def reset(self) -> None:
        """Forget everything: repositories, accounts but `user`, faults, the log."""
        self.state = Hub(self.endpoint, self.storage, users={self.user.name: self.user})
        self.faults.clear()
        self.requests.clear()
        self.crashes.clear()

    def add_user(self, name: str, *orgs: str) -> User:
        """Open an account; its tokens are `user.write_token` and `user.read_token`."""
        user = self.state.users[name] = User(name, orgs)
        return user

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        """The repository as the Hub stores it, whoever may see it.

        Raises:
            KeyError: If it does not exist.
        """
        return self.state.repos[kind, repo_id]

    def fail(
        self,
        when: When = None,
        *,
        how: How = "refuse",
        status: int = 503,
        message: str = "",
        skip: int = 0,
        times: int | None = 1,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> None:
        """Inject a fault: what goes wrong with which requests, see `Fault`.

        Example:
            ```python
            server.fail(("POST", r"/commit/"), status=500)           # the next commit
            server.fail(skip=2)                                      # the third request of any kind
            server.fail(("GET", r"/objects/"), how="truncate")       # a download breaks off in the middle
            server.fail(lambda request: request.origin == "storage", how="drop", times=None)
            ```
        """
        self.faults.append(Fault(when, how, status, message, skip, times, headers or {}, body))

    def next_fault(self, request: Request) -> Fault | None:
        """The fault that hits this request, if any; the first one that strikes wins."""
        with self.state.lock:
            return next((fault for fault in self.faults if fault.strikes(request)), None)

    def respond(self, request: Request) -> Response:
        """Answer a request; one at a time, so that each is atomic."""
        with self.state.lock:
            try:
                if request.origin == "hub":
                    return hub_routes.dispatch(self.state, request)
                check_signature(self.state, request)
                return storage_routes.dispatch(self.state, request)
            except HubError as error:
                return Response.error(error)
            except Exception:
                self.crashes.append(traceback.format_exc())
                return Response.json({"error": f"The test server crashed:\n{traceback.format_exc()}"}, 500)

    def check(self) -> None:
        """What holds for every well-behaved client, and for this server.

        Raises:
            AssertionError: If a token was sent to the storage, or the server crashed.
        """
        leaks = [entry for entry in self.requests if entry.origin == "storage" and entry.sent_token]
        assert not leaks, f"a token was sent to another origin: {leaks}"
        assert not self.crashes, self.crashes[0]
