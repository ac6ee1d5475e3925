"""Trying again what may work the next time: passing server errors, dropped connections."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import parse_ratelimit_headers

from hfsae.connection import PASSING_STATUSES, TransportError, behind

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_WAIT = 0.5  # seconds
# The Hub counts requests in windows of five minutes.
_LONGEST_WAIT = 310.0


@dataclass(frozen=True)
class Backoff:
    """Calls again what failed for a passing reason, each time after twice the wait; 0.5 s at first.

    Where the Hub says how long to wait, that long. Most of what `huggingface_hub` sends it repeats by itself; a
    commit, for one, it does not.

    Args:
        retries: How often at most.
        longest_wait: Seconds. Where the Hub asks for more than that, the error is raised at once.
        of_limits_alone: Whether only refusals for too many requests are waited out: for a reader who is to learn soon
            that there is no network.
    """

    retries: int = 5
    longest_wait: float = _LONGEST_WAIT
    of_limits_alone: bool = False

    def __call__(self, action: Callable[[], T]) -> T:
        """What the action returns, once it does."""
        for attempt in range(self.retries):
            try:
                return action()
            except Exception as error:
                asked = asked_wait(error)
                if not self._repeats(error) or asked > self.longest_wait:
                    raise
                wait = max(_FIRST_WAIT * 2**attempt, asked)
                logger.warning("the Hub did not answer well; trying again in %g s (%s)", wait, type(error).__name__)
                time.sleep(wait)
        return action()

    def _repeats(self, error: BaseException) -> bool:
        return is_limited(error) if self.of_limits_alone else is_passing(error)


def is_passing(error: BaseException) -> bool:
    """Whether an error of the Hub's client may be gone the next time."""
    error = behind(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in PASSING_STATUSES
    # Where the client expects JSON, a proxy that is out of order answers with a page.
    return isinstance(error, TransportError | json.JSONDecodeError)


def is_limited(error: BaseException) -> bool:
    """Whether the Hub refuses for too many requests."""
    error = behind(error)
    return isinstance(error, HfHubHTTPError) and error.response.status_code == 429


def asked_wait(error: BaseException) -> float:
    """The seconds that the Hub itself asks to wait; 0 where it says nothing."""
    error = behind(error)
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    told = parse_ratelimit_headers(headers)
    if error.response.status_code == 429 and told is not None and told.remaining == 0:
        return told.reset_in_seconds + 1.0  # it counts in whole seconds
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else 0.0
