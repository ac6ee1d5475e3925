"""Against a server with sockets of its own: faults, waits, and a key that is seen by nobody else."""

import logging
import time
from email.utils import formatdate

import pytest

from hfsae.meaning import EndpointChat, EndpointError
from tests.meaning.chat_server import hang_up, refuse, reply, serving

ASKED = [[{"role": "user", "content": f"number {i}"}] for i in range(12)]


def echo(messages):
    return messages[-1]["content"].upper()


def test_every_conversation_gets_its_own_answer_however_many_are_asked_at_once():
    with serving(echo, delay=0.05) as server:
        answers = dict(EndpointChat(server.url, "m", at_once=4).answers(ASKED, 7))
        assert answers == {i: f"NUMBER {i}" for i in range(12)}
        assert 1 < server.most_at_once <= 4
        body = server.requests[0]["body"]
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 7, 0)
        assert {request["path"] for request in server.requests} == {"/v1/chat/completions"}


def test_the_beginning_of_an_answer_is_not_sent():
    with serving(echo) as server:
        chat = EndpointChat(server.url, "m")
        assert dict(chat.answers([[*ASKED[0], {"role": "assistant", "content": "["}]], 7)) == {0: "NUMBER 0"}


@pytest.mark.parametrize(
    "fault",
    [
        refuse(503, "busy"),
        refuse(429, "slow down"),
        hang_up,
        lambda handler: reply(handler, 200, b"<html>"),
        lambda handler: reply(handler, 200, {"choices": []}),
    ],
)
def test_what_passes_is_tried_again(fault):
    with serving(echo) as server:
        server.faults = [fault]
        assert dict(EndpointChat(server.url, "m", at_once=1).answers(ASKED[:2], 7)) == {0: "NUMBER 0", 1: "NUMBER 1"}
        assert len(server.requests) == 3


@pytest.mark.parametrize("wait", ["1", "date"])
def test_the_server_says_how_long_to_wait(wait):
    with serving(echo) as server:
        asked = formatdate(time.time() + 2, usegmt=True) if wait == "date" else wait
        server.faults = [refuse(429, "slow down", Retry_After=asked)]
        start = time.monotonic()
        dict(EndpointChat(server.url, "m").answers(ASKED[:1], 7))
        assert time.monotonic() - start >= 0.95


def test_a_wait_of_hours_is_not_waited_for():
    with serving(echo) as server:
        server.faults = [refuse(429, "quota", Retry_After="7200")]
        with pytest.raises(EndpointError, match="asks to wait 7200 s .*quota.*goes on from there"):
            dict(EndpointChat(server.url, "m").answers(ASKED[:1], 7))
        assert len(server.requests) == 1


def test_a_server_that_is_silent_or_down_is_named_in_one_sentence():
    with serving(echo, delay=2) as server:
        with pytest.raises(EndpointError, match=r"127.0.0.1:\d+ did not answer after 2 tries: .*timed out"):
            dict(EndpointChat(server.url, "m", retries=1, timeout=0.2).answers(ASKED[:1], 7))
    with pytest.raises(EndpointError, match="did not answer after 1 tries: .*refused"):
        dict(EndpointChat(server.url, "m", retries=0).answers(ASKED[:1], 7))


@pytest.mark.parametrize(
    ("status", "cure"), [(401, "HFSAE_API_KEY or OPENAI_API_KEY"), (404, "ends in /v1"), (400, ""), (307, "")]
)
def test_a_no_is_not_asked_twice(status, cure):
    with serving(echo) as server:
        server.faults = [refuse(status, "no such thing", Location="http://127.0.0.1:9/v1")]
        with pytest.raises(EndpointError, match=f"says no .status {status}: no such thing.*{cure}"):
            dict(EndpointChat(server.url, "m", at_once=1).answers(ASKED[:1], 7))
        assert len(server.requests) == 1


def test_the_key_goes_to_the_server_and_into_nothing_else(monkeypatch, caplog):
    monkeypatch.setenv("HFSAE_API_KEY", "secret-key")
    with serving(echo) as server, caplog.at_level(logging.DEBUG):
        server.faults = [refuse(503, "Bearer secret-key is busy"), refuse(401, "bad key secret-key")]
        with pytest.raises(EndpointError) as raised:
            dict(EndpointChat(server.url, "m", at_once=1).answers(ASKED[:1], 7))
        assert server.requests[0]["headers"]["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in str(raised.value) + caplog.text + repr(raised.value.__context__)
    assert "busy" in caplog.text


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("HFSAE_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(echo) as server:
        dict(EndpointChat(server.url, "m").answers(ASKED[:1], 7))
        assert "Authorization" not in server.requests[0]["headers"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "is no address"),
        ({"url": "http://me:key@host/v1"}, "holds a key in its address"),
        ({"name": ""}, "no model is named"),
        ({"at_once": 0}, "at least one request"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        EndpointChat(**{"url": "http://127.0.0.1:1/v1", "name": "m", **options})
    assert "me:key" not in str(raised.value)
