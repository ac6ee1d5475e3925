"""Ctrl-C, SIGTERM and SIGHUP (a terminal that is gone) end a run between two steps, after a whole checkpoint."""

import logging
import signal
import threading
from types import FrameType

logger = logging.getLogger(__name__)


# Windows has no SIGHUP.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interruption:
    """A context in which the first of these signals only sets `requested`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        # Python delivers signals to the main thread alone; elsewhere the caller's handling stays.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) == signal.SIG_IGN:  # as nohup has it for SIGHUP: the run shall go on
                    continue
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        logger.warning("%s: stopping after this step and writing a checkpoint.", signal.Signals(number).name)
