"""A server of OpenAI's protocol on a free port of this machine, whose model is a Python function."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[list[dict[str, str]]], str]


class Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class ChatServer:
    """Answers chat completions.

    Attributes:
        breaks_after: The number of requests after which all are refused; None for never.
        url: What `--endpoint` takes.
        answer: The model.
        requests: The body and headers of every request, in the order in which they came.
        faults: What goes wrong with the next requests, first in first out: a function of the handler.
        most_at_once: The most requests that were being answered at the same time.
    """

    def __init__(self, answer: Answer, delay: float = 0.0):
        self.answer, self.delay = answer, delay
        self.requests: list[dict[str, Any]] = []
        self.faults: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.breaks_after: int | None = None
        self.most_at_once = self._now = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server._handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._listener = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}/v1"
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append({"path": handler.path, "body": body, "headers": dict(handler.headers)})
            fault = self.faults.pop(0) if self.faults else None
            if self.breaks_after is not None and len(self.requests) > self.breaks_after:
                fault = refuse(500, "out of memory")
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        time.sleep(self.delay)
        # Before the answer, behind which the client may send the next one at once.
        with self._lock:
            self._now -= 1
        if fault is not None:
            fault(handler)
            return
        message = {"role": "assistant", "content": self.answer(body.get("messages", body))}
        reply(handler, 200, {"choices": [{"index": 0, "message": message}]})


def reply(handler: BaseHTTPRequestHandler, status: int, content: Any, **headers: str) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def refuse(status: int, message: str = "", **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """A fault: a status with a message."""
    return lambda handler: reply(handler, status, {"error": {"message": message}}, **headers)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """A fault: the connection is closed without an answer."""
    handler.close_connection = True
    handler.connection.close()


@contextmanager
def serving(answer: Answer, delay: float = 0.0) -> Iterator[ChatServer]:
    server = ChatServer(answer, delay)
    try:
        yield server
    finally:
        server.stop()


def asked(messages: list[dict[str, str]]) -> tuple[str, list[str]]:
    """What is asked, and the examples of the last message; of a simulation the tokens."""
    text = messages[-1]["content"]
    if "unknown stands in its place" in messages[0]["content"]:
        return "simulation", text.split("\n")[1:]
    kind = "explain" if "What does the feature" in text else "fuzzing" if "<<" in text else "detection"
    examples = text.split("Example ")[1:]
    return kind, [example.split(": ", 1)[1].split("\n")[0].strip() for example in examples]
