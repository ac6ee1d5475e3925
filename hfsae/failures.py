"""What follows the training may fail, and then costs nothing but itself: what was trained is on the disk by then."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def warn_on_failure(failed: str, again: str) -> Iterator[None]:
    """Turns an error into a warning that says how to do by hand what failed, and goes on.

    Args:
        failed: How the warning begins, such as `"not measured"`.
        again: What to do about it: the command that repeats it.
    """
    try:
        yield
    except Exception as error:  # whatever it is
        message = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        logger.warning("%s: %s. The run goes on; %s", failed, message, again)
        logger.debug("%s:", failed, exc_info=True)
