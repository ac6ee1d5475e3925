"""Preparing items ahead in a thread, without losing the place in what they come from."""

import threading
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

Item = TypeVar("Item")
ItemMade = TypeVar("ItemMade", covariant=True)


class StatefulIterator(Protocol[ItemMade]):
    """An iterator that can tell its place and go back to it, such as `TokenBlocks`."""

    def __iter__(self) -> Iterator[ItemMade]: ...

    def __next__(self) -> ItemMade: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Prefetcher(Generic[Item]):
    """Runs another iterator ahead in a thread; what it gives and where it stands look the same as without.

    Each item travels with the source's state before it, so `state_dict` tells the consumer's place and not the
    thread's. An exception in the source is raised where the consumer reaches it, with its own traceback. The thread
    starts with the first item that is asked for, and ends with `close`, with the source, and with the prefetcher.

    Args:
        source: What to run ahead. It belongs to the thread until `close`.
        depth: How many items to hold ready.

    Raises:
        ValueError: If `depth` is less than 1.

    Example:
        >>> with Prefetcher(blocks, depth=2) as batches:
        ...     for batch in batches:
        ...         ...
    """

    def __init__(self, source: StatefulIterator[Item], depth: int = 2) -> None:
        if depth < 1:
            raise ValueError(f"depth is {depth}, expected at least 1")
        self._source = source
        self._depth = depth
        self._worker: _Worker[Item] | None = None
        self._ahead: _Outcome[Item] | None = None
        self._is_closed = False

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        outcome = self._peek()
        if outcome.error is not None:
            # It stays: a source that failed or ended has nothing more to give.
            raise outcome.error
        self._ahead = None
        return outcome.item[0]

    def _peek(self) -> "_Outcome[Item]":
        if self._is_closed:
            raise ValueError("this prefetcher is closed; load a state to use it again")
        if self._ahead is None:
            if self._worker is None:
                self._worker = _Worker(self._source, self._depth)
                self._stop_worker = weakref.finalize(self, self._worker.stop)
            self._ahead = self._worker.get()
        return self._ahead

    def state_dict(self) -> dict[str, Any]:
        """The source's state before the item that comes next; waits for that item where the thread is at work."""
        if self._worker is None and not self._is_closed:
            return self._source.state_dict()
        return self._peek().state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Drops what was prepared and goes on from another place."""
        self.close()
        self._source.load_state_dict(state)
        self._is_closed = False

    def close(self) -> None:
        """Ends the thread, after the item that it is at; what was prepared is dropped."""
        if self._worker is not None:
            self._stop_worker()
        self._worker = self._ahead = None
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Outcome(NamedTuple, Generic[Item]):
    """What the source gave: its state before, and one item or the error (or end) that came instead."""

    state: dict[str, Any]
    item: tuple[Item, ...]
    error: BaseException | None


class _Worker(Generic[Item]):
    """The thread. It holds no reference to its prefetcher, so that one nobody closed can be collected."""

    def __init__(self, source: StatefulIterator[Item], depth: int) -> None:
        self._source = source
        self._outcomes: SimpleQueue[_Outcome[Item]] = SimpleQueue()
        self._free_places = threading.Semaphore(depth)
        self._is_stopping = False
        # A daemon: the interpreter waits for other threads before it runs the finalizer that would end this one.
        self._thread = threading.Thread(target=self._run, name="hfsae-prefetch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        outcome = None
        while outcome is None or outcome.error is None:
            self._free_places.acquire()
            if self._is_stopping:
                return
            outcome = self._advance()
            self._outcomes.put(outcome)

    def _advance(self) -> _Outcome[Item]:
        state: dict[str, Any] = {}
        try:
            state = self._source.state_dict()
            return _Outcome(state, (next(self._source),), None)
        except BaseException as error:
            return _Outcome(state, (), error)

    def get(self) -> _Outcome[Item]:
        outcome = self._outcomes.get()
        self._free_places.release()
        return outcome

    def stop(self) -> None:
        self._is_stopping = True
        self._free_places.release()
        # The garbage collector may run the finalizer in any thread, this one included.
        if threading.current_thread() is not self._thread:
            self._thread.join()
