"""Requests that are sent again after failures that may pass; the key goes to the host that was named, and no other."""

import http.client
import json
import logging
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hfsae.connection import PASSING_STATUSES

logger = logging.getLogger(__name__)

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds
_LONGEST_ASKED = 600.0
# What servers say in a sentence; some send pages.
_LONGEST_MESSAGE = 300

Read = TypeVar("Read")


class EndpointError(OSError):
    """A server does not answer, or says no. What was answered before is not lost."""


class Passing(Exception):
    """A failure that may be gone the next time.

    Args:
        message: What happened.
        asked: Seconds that the server asks to wait; None where it says nothing.
    """

    def __init__(self, message: str, asked: float | None = None):
        super().__init__(message)
        self.asked = asked


class Poster:
    """Posts JSON to one address.

    Args:
        url: The address.
        retries: How often a request is sent again after a failure that may pass (no connection, silence, 429, 5xx).
            The wait doubles from 0.5 s to a minute; where the server says how long to wait, it is that long.
        timeout: Seconds that the server may be silent.
        kept: What to say of the work that was done before a failure.
        cure: What to say to a status, a sentence with a space in front.

    Attributes:
        host: The server's name and port.
        stopped: Set it, and nothing is sent again.
    """

    def __init__(self, url: str, *, retries: int, timeout: float, kept: str, cure: Callable[[int], str]):
        self.host, self.stopped = urlsplit(url).netloc, threading.Event()
        self._url, self._retries, self._timeout, self._kept, self._cure = url, retries, timeout, kept, cure
        self._opener = urllib.request.build_opener(_NoRedirects)

    def post(
        self, content: Mapping[str, Any], key: tuple[str, str, str] | None, read: Callable[[bytes], Read]
    ) -> Read:
        """Sends something and reads the answer.

        Args:
            content: What is sent.
            key: A header's name, what stands in front of the key in it, and the key.
            read: Reads the answer; it raises `Passing` where that is none.

        Raises:
            EndpointError: If the server cannot be reached, or says no, after all retries.
        """
        for attempt in range(self._retries + 1):
            try:
                return read(self._send(content, key))
            except Passing as failure:
                if attempt == self._retries or self.stopped.is_set():
                    raise EndpointError(
                        f"{self.host} did not answer after {attempt + 1} tries: {failure}. {self._kept}"
                    ) from None
                wait = self._wait(attempt, failure)
                logger.info("%s: %s; trying again in %.1f s", self.host, failure, wait)
                self.stopped.wait(wait)
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, attempt: int, failure: Passing) -> float:
        if failure.asked is not None:
            if failure.asked > _LONGEST_ASKED:
                raise EndpointError(f"{self.host} asks to wait {failure.asked:.0f} s ({failure}). {self._kept}")
            return failure.asked
        # A little at random, so that requests that failed together do not come back together.
        return min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.8, 1.2)

    def _send(self, content: Mapping[str, Any], key: tuple[str, str, str] | None) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "hfsae"}
        if key is not None:
            headers[key[0]] = f"{key[1]}{key[2].strip()}"
        request = urllib.request.Request(self._url, json.dumps(content).encode(), headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            said = _said(error, None if key is None else key[2])
            if error.code in PASSING_STATUSES:
                raise Passing(f"status {error.code}{said}", _asked_wait(error.headers.get("Retry-After"))) from None
            raise EndpointError(f"{self.host} says no (status {error.code}{said}).{self._cure(error.code)}") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Passing(f"{type(reason).__name__}: {reason}".removesuffix(": ")) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect as an answer: the key belongs to the host that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


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
