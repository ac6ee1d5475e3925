"""What all parts of the Hub share: its refusals, and its spelling of dates."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


class HubError(Exception):
    """A request the Hub refuses.

    Args:
        status: HTTP status.
        message: What the client shows to its user.
        code: The `X-Error-Code` by which the client chooses the exception it raises.
        headers: More headers of the response.
        **body: More keys of its JSON body.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None, **body: Any
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body
        self.headers = headers or {}


def now() -> datetime:
    return datetime.now(UTC)


def timestamp(date: datetime) -> str:
    """The Hub's spelling of a date, e.g. `2025-01-31T12:00:00.000000Z`."""
    return date.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
