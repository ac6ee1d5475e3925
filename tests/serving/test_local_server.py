"""Requests as pages of its own, pages of strangers and odd programs send them."""

import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from threading import Thread
from typing import Any

import pytest

from hfsae.serving import local_server
from tests.serving.test_playground import playground_of_a_set


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with local_server(playground_of_a_set()) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        assert server.server_address[0] == "127.0.0.1"
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, content, given)
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, read


QUESTION = {"text": "w1 w2 w3", "sae": "mlp.1", "strengths": {"mlp.1": {"5": 30}}, "new_tokens": 4}


def test_the_page_and_its_questions_are_answered(port):
    status, headers, page = ask(port, "GET", "/")
    assert status == 200 and b"Features of set" in page and b"connect-src &#39;self&#39;" in page
    assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
    status, headers, read = ask(port, "POST", "/read", QUESTION, Origin=f"http://127.0.0.1:{port}")
    assert status == 200 and len(json.loads(read)["tokens"]) == 3
    assert not [name for name in headers if name.startswith("access-control")]
    status, _, made = ask(port, "POST", "/generate", QUESTION, Sec_Fetch_Site="same-origin")
    assert status == 200 and json.loads(made).keys() == {"plain", "steered"}


def test_a_text_is_traced_and_its_graph_is_a_page_that_fetches_nothing(port):
    status, _, made = ask(port, "POST", "/trace", QUESTION)
    told = json.loads(made)
    status, headers, page = ask(port, "GET", f"/graph/{told['graph']}", Sec_Fetch_Site="same-origin")
    assert status == 200 and headers["content-type"].startswith("text/html") and b"<title>w1 w2 w3</title>" in page
    assert b"default-src &#39;none&#39;" in page and b"connect-src" not in page
    assert headers["x-frame-options"] == "DENY" and headers["cache-control"] == "no-store"
    assert ask(port, "GET", f"/graph/{told['graph']}", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(port, "GET", f"/graph/{told['graph']}", Host="evil.example")[0] == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Length": "999999999"}, 413),
        ({"Content_Length": "9" * 40}, 413),
        ({"Content_Length": "-1"}, 411),
    ],
    ids=str,
)
def test_strangers_get_no_answer(port, headers, status):
    answered, told, content = ask(port, "POST", "/read", QUESTION, **headers)
    assert answered == status and "tokens" not in json.loads(content) and json.loads(content)["error"]
    assert not [name for name in told if name.startswith("access-control")]


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "HEAD"])
def test_other_methods_are_not_there(port, method):
    status, headers, _ = ask(port, method, "/read", Origin="https://evil.example")
    assert status == 501 and not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/../pyproject.toml",
        "/?x=1",
        "/read",
        "/graph/",
        "/graph/999",
        "/graph/-1",
        "/graph/1/../../etc/passwd",
        "/graph/1.html",
    ],
)
def test_there_is_one_page(port, path):
    assert ask(port, "GET", path)[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/read", b"{", "no JSON"),
        ("/read", b"\xff\xfe", "no JSON"),
        ("/read", [1], "no JSON object"),
        ("/read", b"[" * 50_000, "no JSON"),
        ("/read", {"text": "w1 " * 11}, "10 are allowed"),
        ("/read", {"text": "w1", "sae": ["mlp.0"]}, "no SAE"),
        ("/trace", {"text": "w1 " * 7}, "6 are allowed"),
        ("/trace", {}, "empty"),
        ("/generate", {"text": "w1"}, "strengths are wrong"),
        ("/generate", {**QUESTION, "new_tokens": 10**6}, "expected 1 to 8"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_odd_questions_are_told(port, path, body, message):
    status, _, content = ask(port, "POST", path, body)
    assert status == 400 and message in json.loads(content)["error"]


def test_it_still_answers_after_somebody_hung_up(port):
    with socket.create_connection(("127.0.0.1", port)) as half:
        half.sendall(f"POST /read HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 99\r\n".encode())
    assert ask(port, "POST", "/read", QUESTION)[0] == 200
