"""A language model behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, TGI, or a service on the web.

The key comes from the environment. It goes into one header of each request, to the host that was named and to no
other, and is never stored, logged or shown.
"""

import http.client
import json
import logging
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from hfsae.connection import PASSING_STATUSES
from hfsae.meaning.chat import Conversation, beginning_of

logger = logging.getLogger(__name__)

KEY = "HFSAE_API_KEY"
KEYS = (KEY, "OPENAI_API_KEY")
"""Variables of the environment that may hold the key; the first that is there is taken."""

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds
_LONGEST_ASKED = 600.0
# What servers say in a sentence; some send pages.
_LONGEST_MESSAGE = 300
_CHARACTERS_A_TOKEN = 4


class EndpointError(OSError):
    """A server does not answer, or says no. What was answered before is not lost."""


class EndpointChat:
    """A chat model behind a server that speaks the protocol of OpenAI's chat completions.

    Args:
        url: The server's address up to the version: `"http://127.0.0.1:8000/v1"`.
        name: The model, as the server calls it.
        at_once: Requests at the same time.
        retries: How often a request is sent again after a failure that may pass (no connection, silence, 429, 5xx).
            The wait doubles from 0.5 s to a minute; where the server says how long to wait, it is that long.
        timeout: Seconds that the server may be silent.

    Raises:
        ValueError: If the address is none, or a number is impossible.

    Example:
        >>> chat = EndpointChat("http://127.0.0.1:8000/v1", "Qwen/Qwen3-8B")
        >>> chat.at_once
        8
    """

    def __init__(self, url: str, name: str, *, at_once: int = 8, retries: int = 6, timeout: float = 120.0):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the endpoint {url!r} is no address; expected one such as http://127.0.0.1:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise ValueError(f"the endpoint at {parts.hostname} holds a key in its address: put it into {KEY}.")
        if not name:
            raise ValueError("no model is named: give the name by which the server knows it (--model).")
        if at_once < 1 or retries < 0 or timeout <= 0:
            raise ValueError("expected at least one request at once, no negative retries, and a positive timeout.")
        self.name, self.at_once = name, at_once
        self._url = f"{url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"
        self._host = parts.netloc
        self._retries, self._timeout = retries, timeout
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._stopped = threading.Event()

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """See `hfsae.meaning.chat.Chat`.

        Raises:
            EndpointError: If the server cannot be reached, or says no, after all retries.
        """
        self._stopped.clear()
        pool = ThreadPoolExecutor(self.at_once)
        try:
            waiting = {
                pool.submit(self._answer, conversation, max_new_tokens): number
                for number, conversation in enumerate(conversations)
            }
            failed: Exception | None = None
            for done in as_completed(waiting):
                if done.cancelled():
                    continue
                if (error := done.exception()) is None:
                    yield waiting[done], done.result()
                elif failed is None:
                    # What is under way is still waited for, and kept; nothing else is sent.
                    failed = error if isinstance(error, Exception) else RuntimeError(str(error))
                    self._stopped.set()
                    for other in waiting:
                        other.cancel()
            if failed is not None:
                raise failed
        finally:
            # After Ctrl-C nobody waits for what was not sent yet.
            self._stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def tokens_of(self, conversation: Conversation) -> int:
        """About how many tokens: a quarter of the characters, as the server's tokenizer is not here."""
        return sum(len(message["content"]) for message in conversation) // _CHARACTERS_A_TOKEN

    def _answer(self, conversation: Conversation, max_new_tokens: int) -> str:
        # Most servers begin a new message behind one of the assistant, and a few refuse it.
        messages = conversation[:-1] if beginning_of(conversation) else conversation
        asked = {"model": self.name, "messages": messages, "max_tokens": max_new_tokens, "temperature": 0}
        for attempt in range(self._retries + 1):
            try:
                return _content(self._send(asked), self._host)
            except _Passing as failure:
                if attempt == self._retries or self._stopped.is_set():
                    raise EndpointError(
                        f"{self._host} did not answer after {attempt + 1} tries: {failure}. What was answered is "
                        "kept; the same command goes on from there."
                    ) from None
                wait = self._wait(attempt, failure)
                logger.info("%s: %s; trying again in %.1f s", self._host, failure, wait)
                self._stopped.wait(wait)
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, attempt: int, failure: "_Passing") -> float:
        if failure.asked is not None:
            if failure.asked > _LONGEST_ASKED:
                raise EndpointError(
                    f"{self._host} asks to wait {failure.asked:.0f} s ({failure}). What was answered is kept; the "
                    "same command goes on from there."
                )
            return failure.asked
        # A little at random, so that requests that failed together do not come back together.
        return min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.8, 1.2)

    def _send(self, asked: Mapping[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "hfsae"}
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        if key is not None:
            headers["Authorization"] = f"Bearer {key.strip()}"
        request = urllib.request.Request(self._url, json.dumps(asked).encode(), headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            said = _said(error, key)
            if error.code in PASSING_STATUSES:
                raise _Passing(f"status {error.code}{said}", _asked_wait(error.headers.get("Retry-After"))) from None
            raise EndpointError(f"{self._host} says no (status {error.code}{said}).{_cure(error.code)}") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _Passing(f"{type(reason).__name__}: {reason}".removesuffix(": ")) from None


class _Passing(Exception):
    """A failure that may be gone the next time.

    Args:
        message: What happened.
        asked: Seconds that the server asks to wait; None where it says nothing.
    """

    def __init__(self, message: str, asked: float | None = None):
        super().__init__(message)
        self.asked = asked


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect as an answer: the key belongs to the host that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _content(body: bytes, host: str) -> str:
    """The text of the first answer; an empty one where the model said nothing."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _Passing("its answer is no chat completion: " + repr(body[:80].decode("utf-8", "replace"))) from None
    return text if isinstance(text, str) else ""


def _said(error: urllib.error.HTTPError, key: str | None) -> str:
    """What the server says, short; without the key, which some repeat."""
    try:
        body = error.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        content = json.loads(body)
        told = content.get("error", content)
        body = told.get("message", body) if isinstance(told, dict) else str(told)
    except (ValueError, AttributeError, RecursionError):
        pass
    message = " ".join(str(body).split())[:_LONGEST_MESSAGE]
    if key:
        message = message.replace(key.strip(), "…")
    return f": {message}" if message else ""


def _cure(status: int) -> str:
    if status in (401, 403):
        return f" Put a key into the environment: {' or '.join(KEYS)}."
    if status == 404:
        return " Check the address, which often ends in /v1, and the model's name (--model)."
    return ""


def _asked_wait(asked: str | None) -> float | None:
    """The seconds of `Retry-After`, which holds a number or a date."""
    if asked is None:
        return None
    try:
        return max(float(asked), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(asked).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None
