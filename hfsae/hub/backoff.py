"""Trying again what may work the next time: passing server errors, dropped connections."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError

from hfsae.hub.errors import TransportError, behind

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds


@dataclass(frozen=True)
class Backoff:
    """Calls again what failed for a passing reason, each time after twice the wait; 0.5 s at first.

    Most of what `huggingface_hub` sends it repeats by itself; a commit, for one, it does not.

    Args:
        retries: How often at most.
    """

    retries: int = 5

    def __call__(self, action: Callable[[], T]) -> T:
        """What the action returns, once it does."""
        for attempt in range(self.retries):
            try:
                return action()
            except Exception as error:
                if not is_passing(error):
                    raise
                wait = min(_LONGEST_WAIT, max(_FIRST_WAIT * 2**attempt, _asked_wait(error)))
                logger.warning("the Hub did not answer well; trying again in %g s (%s)", wait, type(error).__name__)
                time.sleep(wait)
        return action()


def is_passing(error: BaseException) -> bool:
    """Whether an error of the Hub's client may be gone the next time."""
    error = behind(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING_STATUSES
    return isinstance(error, TransportError)


def _asked_wait(error: BaseException) -> float:
    """The seconds that the Hub itself asks to wait."""
    error = behind(error)
    headers = error.response.headers if isinstance(error, HfHubHTTPError) else {}
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0
