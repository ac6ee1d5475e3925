import os
import signal
import threading
from collections.abc import Iterator

import pytest

from hfsae.interruption import Interruption


@pytest.fixture
def heard(number) -> Iterator[None]:
    """Under nohup a test's process ignores SIGHUP."""
    before = signal.signal(number, signal.SIG_DFL)
    yield
    signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_only_asks_to_stop(number, heard, caplog):
    with Interruption() as interruption:
        assert not interruption.requested
        signal.raise_signal(number)  # in this thread: another may be late
        assert interruption.requested
    assert f"{number.name}: stopping after this step" in caplog.text


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), Interruption():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_the_handlers_of_before_come_back_even_after_an_error():
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError), Interruption():
        assert signal.getsignal(signal.SIGINT) != handlers[0]
        raise ZeroDivisionError
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers


def test_a_run_under_nohup_goes_on_when_its_terminal_is_gone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interruption.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_signals_are_left_alone():
    handler = signal.getsignal(signal.SIGINT)
    seen = []

    def train():
        with Interruption() as interruption:
            seen.append((interruption.requested, signal.getsignal(signal.SIGINT) == handler))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
