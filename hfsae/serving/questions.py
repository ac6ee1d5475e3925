"""Questions that reach a page's model in threads of their own: one has it at a time, and the end waits for all."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock


class BusyError(RuntimeError):
    """The model is at work for another question, or ends."""


class Questions:
    """The questions on their way.

    A process that ends while torch works in another thread is aborted. Torch works before a question has its turn
    (its text becomes tensors) and after it, so the end waits for whole questions.

    Args:
        seconds: How long a question waits for its turn.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._model = Lock()
        self._changed = Condition()
        self._n_asked, self._finished = 0, False

    @contextmanager
    def asked(self) -> Iterator[None]:
        """A question, from its first use of torch to its last.

        Raises:
            BusyError: If the end has come.
        """
        with self._changed:
            self._refuse_after_the_end()
            self._n_asked += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_asked -= 1
                self._changed.notify_all()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The model for one question; those behind it wait, but not for ever.

        Raises:
            BusyError: If the wait is too long, or the end comes meanwhile.
        """
        if not self._model.acquire(timeout=self._seconds):
            raise BusyError("the model is still at work for another question: try again.")
        try:
            self._refuse_after_the_end()
            yield
        finally:
            self._model.release()

    def finish(self) -> None:
        """Waits for the questions that are being answered; the one at the model is the last that has a turn."""
        with self._changed:
            self._finished = True
            self._changed.wait_for(lambda: not self._n_asked)

    def _refuse_after_the_end(self) -> None:
        if self._finished:
            raise BusyError("the server ends: start it again.")
