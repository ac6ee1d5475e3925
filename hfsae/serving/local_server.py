"""The server of the page: on 127.0.0.1, and for nobody but the page itself.

A page of another site that is open in the same browser can send requests here too. A name of its own can be made to
point at 127.0.0.1. So the host that is asked for and the site that asks are both checked. Questions have to be JSON,
which no other site may send without leave, and no leave is ever given.
"""

import json
import logging
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from markupsafe import Markup

from hfsae.serving.playground import Playground
from hfsae.serving.questions import BusyError
from hfsae.webpage import as_data, as_json, asset, render_html

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
_LONGEST_QUESTION = 256_000  # bytes
_SECONDS_TO_SEND = 20.0
_HERE = "hfsae.serving"
_HTML, _JSON = "text/html; charset=utf-8", "application/json"
_GRAPH = re.compile(r"/graph/([0-9]{1,9})")


def local_server(playground: Playground, port: int = 0) -> ThreadingHTTPServer:
    """A server that is bound and answers once its `serve_forever` runs.

    Args:
        playground: What answers.
        port: The port; 0 takes a free one, which `server_address` tells.

    Raises:
        OSError: If the port is taken.
    """
    page = _page(playground).encode()

    class Handler(_Handler):
        pass

    Handler.playground, Handler.page = playground, page
    server = ThreadingHTTPServer((ADDRESS, port), Handler)
    server.daemon_threads = True
    return server


def _page(playground: Playground) -> str:
    style = asset("style.css") + "\n" + asset("serve.css", _HERE)
    script = "\n".join([asset("elements.js"), asset("tokens.js"), asset("serve.js", _HERE)])
    about = playground.about()
    title = f"Features of {about['name']}" if about["name"] else "Features"
    page = asset("serve.html", _HERE)
    return render_html(page, style, script, asks_server=True, title=title, content=Markup(as_data(about)))


class _Refused(Exception):  # noqa: N818  an answer, not a fault
    def __init__(self, status: HTTPStatus, why: str):
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    playground: Playground
    page: bytes
    timeout = _SECONDS_TO_SEND
    server_version, sys_version = "hfsae", ""

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def _get(self) -> tuple[bytes, str]:
        if self.path == "/":
            return self.page, _HTML
        asked = _GRAPH.fullmatch(self.path)
        if asked is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is one page here, /, with graphs that it made")
        graph = self.playground.graph(int(asked[1]))
        if graph is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such graph, or no longer: trace the text again")
        return graph, _HTML

    def _post(self) -> tuple[bytes, str]:
        if self.headers.get_content_type() != _JSON:
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a question is JSON")
        asked = self._question()
        if self.path == "/read":
            answer = self.playground.read(asked.get("text"), asked.get("sae"))
        elif self.path == "/generate":
            asked = {name: asked.get(name) for name in ("text", "strengths", "new_tokens")}
            answer = self.playground.generate(**asked)
        elif self.path == "/trace":
            answer = self.playground.trace(asked.get("text"))
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "questions go to /read, /generate and /trace")
        return as_json(answer).encode(), _JSON

    def _question(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "a question says how long it is")
        if len(length) > 9 or int(length) > _LONGEST_QUESTION:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the text is too long")
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, "the question is no JSON") from error
        if not isinstance(asked, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "the question is no JSON object")
        return asked

    def _check_who_asks(self) -> None:
        port = self.connection.getsockname()[1]
        hosts = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
        if self.headers.get("Host") not in hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, f"this server is {ADDRESS}:{port}, under no other name")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in hosts}:
            raise _Refused(HTTPStatus.FORBIDDEN, "only the page of this server may ask it")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise _Refused(HTTPStatus.FORBIDDEN, "only the page of this server may ask it")

    def _answered(self, answer: Any) -> None:
        try:
            self._check_who_asks()
            content, kind = answer()
            self._send(HTTPStatus.OK, content, kind)
        except _Refused as refused:
            self._say(refused.status, str(refused))
        except BusyError as error:
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except ValueError as error:
            self._say(HTTPStatus.BAD_REQUEST, str(error))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # who asked has gone
        except Exception:
            logger.exception("a question could not be answered")
            self._say(HTTPStatus.INTERNAL_SERVER_ERROR, "the model could not answer; the terminal says why")

    def _say(self, status: HTTPStatus, why: str) -> None:
        self._send(status, json.dumps({"error": why}).encode(), _JSON)

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
