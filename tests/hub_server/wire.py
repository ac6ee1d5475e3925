"""HTTP: requests and responses as values, the log of what passed, and the handler that speaks on the socket."""

import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from .base import HubError

Origin = Literal["hub", "storage"]


@dataclass
class Request:
    """A request as it came in.

    Attributes:
        target: The path as sent, percent-encoded (a `/` inside one segment is `%2F`), without the query.
        origin: Which of the two hosts was addressed.
    """

    method: str
    target: str
    origin: Origin = "hub"
    query: Mapping[str, list[str]] = field(default_factory=dict)
    headers: Message = field(default_factory=Message)  # case-insensitive
    body: bytes = b""

    @property
    def path(self) -> str:
        return unquote(self.target)

    @property
    def token(self) -> str | None:
        """The bearer token, if one was sent."""
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return token if scheme.lower() == "bearer" else None

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object."""
        try:
            payload = json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"The body is not JSON: {error}") from error
        if not isinstance(payload, dict):
            raise HubError(400, "The body must be a JSON object")
        return payload

    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode())

    def option(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        return self.option(name).lower() in ("1", "true")


@dataclass
class Response:
    """A response as it goes out."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
        return cls(status, json.dumps(payload).encode(), {"Content-Type": "application/json", **(headers or {})})

    @classmethod
    def error(cls, error: HubError) -> "Response":
        message = error.message.replace("\n", " ").encode("ascii", "replace").decode()  # headers hold nothing else
        headers = {"X-Error-Message": message, **error.headers}
        if error.code:
            headers["X-Error-Code"] = error.code
        return cls.json({"error": error.message, **error.body}, error.status, headers)

    @classmethod
    def file(cls, request: Request, data: bytes, headers: Mapping[str, str]) -> "Response":
        """The bytes that the request asks for: all, or those of a `Range: bytes=first-last` header."""
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range") or "")
        if not match or not any(match.groups()):
            return cls(200, data, headers)
        first, last = match.groups()
        start = int(first) if first else max(len(data) - int(last), 0)
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= stop:
            return cls(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
        return cls(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


@dataclass(frozen=True)
class LogEntry:
    """What is remembered of a request; `status` is None if the connection was dropped."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    origin: Origin
    status: int | None
    sent_token: bool
    body_size: int
    range: str | None


class RequestLog(list[LogEntry]):
    """The requests since the last reset (or `clear()`), oldest first."""

    def matching(self, method: str | None = None, path: str = "", origin: Origin | None = None) -> list[LogEntry]:
        """The requests with this method, a path in which the regular expression is found, and this origin."""
        return [
            entry
            for entry in self
            if method in (None, entry.method) and origin in (None, entry.origin) and re.search(path, entry.path)
        ]

    def record(self, request: Request, status: int | None) -> None:
        self.append(
            LogEntry(
                method=request.method,
                path=request.path,
                query=request.query,
                origin=request.origin,
                status=status,
                sent_token=request.token is not None,
                body_size=len(request.body),
                range=request.headers.get("Range"),
            )
        )


class Handler(BaseHTTPRequestHandler):
    """Reads one request after the other from a connection and lets `server.hub_server` answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet; unbuffered, each answer would wait for a delayed ACK

    def serve(self) -> None:
        server = self.server.hub_server  # type: ignore[attr-defined]
        request = self.read_request()
        fault = server.next_fault(request)
        how = fault.how if fault else None
        if how == "corrupt" and request.body:
            request.body = request.body[:-1] + bytes([request.body[-1] ^ 0xFF])
        if how == "hang":
            server.requests.record(request, None)
            self.rfile.read(1)  # returns when the client hangs up
            self.close_connection = True
            return
        if how == "drop":
            response = None
        elif fault and how == "refuse":
            response = fault.refusal()
        else:
            response = server.respond(request)
        server.requests.record(request, response.status if response and how != "lose" else None)
        if response is None or how == "lose":
            self.hang_up()
        elif how == "truncate":
            self.write_response(response, stop=len(response.body) // 2)
            self.hang_up()
        else:
            self.write_response(response)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def read_request(self) -> Request:
        url = urlsplit(self.path)
        origin: Origin = "storage" if (self.headers["Host"] or "").startswith("localhost") else "hub"
        return Request(self.command, url.path, origin, parse_qs(url.query), self.headers, self.read_body())

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def write_response(self, response: Response, stop: int | None = None) -> None:
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[:stop])
        self.wfile.flush()

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests go to the log that tests read, not to stderr."""
