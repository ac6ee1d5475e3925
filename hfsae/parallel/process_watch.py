"""The processes of a run look after each other: one that dies ends all within a minute, with its name.

Each tells through torch's own store (`torch.distributed.TCPStore`) that it lives and watches the one after it. On one
machine the system says whether a process lives; of another machine the store says when it was last heard of. Without
this the others would wait for what the dead one will not send: for minutes (NCCL), or half an hour (gloo).
"""

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import count
from types import TracebackType
from typing import Any

import psutil
from accelerate import Accelerator
from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import PrefixStore, Store

logger = logging.getLogger(__name__)

# Seconds: between signs of life, and without one until a process on another machine counts as dead.
_BEAT, _SILENT = 1.0, 40.0
# The main thread has so many seconds to end by itself; it may wait for ever for a process that is gone.
_GRACE = 5.0

_SILENTLY = "has died without a word: it was killed, ran out of memory, or its machine is gone"

_entered = count()


class ProcessLostError(RuntimeError):
    """Another process of the run has ended; the message says which, why, and what is left."""


class ProcessWatch:
    """A context in which the end of one process ends all; of one process alone it does nothing.

    Args:
        accelerator: The run's accelerator.
        what_is_left: Says what the user has after the end.

    Raises:
        ProcessLostError: On leaving the context, in place of the error of an exchange with a process that was lost.
    """

    def __init__(self, accelerator: Accelerator, what_is_left: Callable[[], str]):
        self._rank, self._processes = accelerator.process_index, accelerator.num_processes
        self._what_is_left = what_is_left
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self._first: dict[str, Any] | None = None

    def __enter__(self) -> "ProcessWatch":
        # Whoever joins processes by other means than the usual variables has no such store.
        if self._processes > 1 and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            self._store = _store()
            self._me = {"rank": self._rank, "host": platform.node(), "pid": os.getpid()}
            self._store.set(f"who/{self._rank}", json.dumps(self._me))
            self._thread = threading.Thread(target=self._watch, name="hfsae-process-watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread is None:
            return
        lost = None
        if error is not None and _is_of_an_exchange(error):
            lost = self._wait_for_the_lost()
        elif error is not None:
            with suppress(RuntimeError):  # where the store is gone nobody is left to tell
                self._tell_of(self._me, f"has ended with {type(error).__name__}: {error}")
        self._left.set()
        self._thread.join()
        if error is None and self._rank == 0 and not _store_outlives_processes():
            self._wait_until_all_know()
        if lost is not None:
            raise ProcessLostError(self._described(lost)) from error

    def _watch(self) -> None:
        after = (self._rank + 1) % self._processes
        watched: _Watched | None = None
        beats, heard = -1, time.monotonic()
        while not self._left.wait(_BEAT if watched and self._first else _BEAT / 10):
            try:
                self._store.add(f"beat/{self._rank}", 1)
                self._first = self._first or self._who(0)
                if watched is None and (who := self._who(after)):  # it may come here much later
                    watched = _Watched(who)
                now = self._store.add(f"beat/{after}", 0)
                if now != beats or watched is None:
                    beats, heard = now, time.monotonic()
                elif not self._has_left(after) and watched.is_dead(time.monotonic() - heard):
                    self._tell_of(watched.who, _SILENTLY)
                lost = self._lost()
                if lost is None and self._has_left(0) and not _store_outlives_processes():
                    break  # the store goes with the first process
            except RuntimeError:
                lost = self._keeper_of_the_store()
            if lost is not None:
                self._end_with(lost)
                return
        with suppress(RuntimeError):
            self._store.set(f"left/{self._rank}", "")

    def _has_left(self, rank: int) -> bool:
        """Whether a process is done with what is watched."""
        return self._store.check([f"left/{rank}"])

    def _wait_until_all_know(self) -> None:
        """The store ends with the first process: whoever does not know that it has left would take it for dead."""
        until = time.monotonic() + _SILENT
        while time.monotonic() < until and not all(self._has_left(rank) for rank in range(self._processes)):
            time.sleep(_BEAT / 20)

    def _who(self, rank: int) -> dict[str, Any] | None:
        """What a process has told of itself; None while it has not."""
        key = f"who/{rank}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _keeper_of_the_store(self) -> dict[str, Any]:
        """The process without which there is no store."""
        first = self._first or {"rank": 0, "host": os.environ["MASTER_ADDR"], "pid": "unknown"}
        return {**first, "why": _SILENTLY}

    def _tell_of(self, who: dict[str, Any], why: str) -> None:
        """Tells all of a process that has ended; of several the first one counts."""
        self._store.compare_set("lost", "", json.dumps({**who, "why": why}))

    def _lost(self) -> dict[str, Any] | None:
        return json.loads(self._store.get("lost")) if self._store.check(["lost"]) else None

    def _wait_for_the_lost(self) -> dict[str, Any] | None:
        """Who it was that an exchange has failed with; None if all turn out to live."""
        until = time.monotonic() + _SILENT + 3 * _BEAT
        while time.monotonic() < until:
            try:
                lost = self._lost()
            except RuntimeError:
                return self._keeper_of_the_store()
            if lost is not None:
                return None if lost["rank"] == self._rank else lost
            time.sleep(_BEAT / 4)
        return None

    def _end_with(self, lost: dict[str, Any]) -> None:
        """Ends this process where its main thread does not do so."""
        if lost["rank"] == self._rank or self._left.wait(_GRACE):
            return
        logger.error("%s", self._described(lost))
        logging.shutdown()
        os._exit(1)

    def _described(self, lost: dict[str, Any]) -> str:
        return (
            f"process {lost['rank']} of {self._processes}, on {lost['host']} (pid {lost['pid']}), {lost['why']}. "
            f"The run cannot go on without it. {self._what_is_left()}"
        )


class _Watched:
    """A process of the run, looked at from another.

    The system tells it from a later one of the same number by when it began, counted from when the machine did: the
    time of day of its birth moves with every correction of the clock (psutil 7).
    """

    def __init__(self, who: dict[str, Any]):
        self.who = who
        self._is_here, self._process = who["host"] == platform.node(), None
        if self._is_here:
            with suppress(psutil.NoSuchProcess):
                self._process = psutil.Process(who["pid"])

    def is_dead(self, silent: float) -> bool:
        """Whether it is gone, after so many seconds of silence."""
        if self._is_here:
            try:
                if self._process is None or not self._process.is_running():
                    return True
                if self._process.status() == psutil.STATUS_ZOMBIE:
                    return True
            except psutil.NoSuchProcess:
                return True
        return silent > _SILENT


def _store_outlives_processes() -> bool:
    """Whether the launcher of this process keeps the store (torchrun does); otherwise the first process does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def _store() -> Store:
    """A connection of its own to the store that the processes met by, which a thread may use."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_SILENT))
    return PrefixStore(f"hfsae/process_watch/{next(_entered)}", store)


def _is_of_an_exchange(error: BaseException) -> bool:
    """Whether an error says that other processes could not be reached: gloo's have no class of their own."""
    if isinstance(error, DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "onnection"))
