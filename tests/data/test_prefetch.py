import gc
import threading
import time
import traceback
from itertools import islice

import pytest

from hfsae.data import Prefetcher, TokenBlocks
from tests.data.tiny import assert_equal, pythia_like, text_dataset


class Counter:
    """Counts from 0 to `end`, where it stops or fails; remembers how far it was run."""

    def __init__(self, end=10**9, failure=None):
        self.at = 0
        self.end = end
        self.failure = failure

    def __iter__(self):
        return self

    def __next__(self):
        if self.at == self.end:
            raise self.failure or StopIteration
        self.at += 1
        return self.at - 1

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "hfsae-prefetch"]


@pytest.fixture(autouse=True)
def no_thread_stays_behind():
    assert not prefetch_threads()
    yield
    assert not prefetch_threads()


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in ten seconds"
        time.sleep(0.001)


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_items_are_those_of_the_source(depth):
    with Prefetcher(Counter(end=50), depth) as items:
        assert list(items) == list(range(50))
        assert list(items) == []


def test_the_state_is_the_consumers_and_not_the_threads():
    source = Counter()
    with Prefetcher(source, depth=4) as items:
        assert items.state_dict() == {"at": 0}
        for expected in range(3):
            assert items.state_dict() == {"at": expected}
            assert next(items) == expected
        wait_until(lambda: source.at > 5)
        assert items.state_dict() == {"at": 3}
        assert next(items) == 3


def test_it_goes_back_and_forward_to_any_state():
    with Prefetcher(Counter(), depth=3) as items:
        assert list(islice(items, 5)) == [0, 1, 2, 3, 4]
        items.load_state_dict({"at": 2})
        assert items.state_dict() == {"at": 2}
        assert list(islice(items, 3)) == [2, 3, 4]
        items.load_state_dict({"at": 90})
        assert next(items) == 90


def test_the_source_runs_no_further_ahead_than_the_depth():
    source = Counter()
    with Prefetcher(source, depth=2) as items:
        assert source.at == 0  # no thread before it is needed
        next(items)
        wait_until(lambda: source.at == 3)
        time.sleep(0.05)
        assert source.at == 3


def test_an_error_is_raised_where_the_consumer_reaches_it_with_its_own_traceback():
    with Prefetcher(Counter(end=3, failure=OSError("the disk is gone")), depth=8) as items:
        assert list(islice(items, 3)) == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone") as caught:
                next(items)
        assert "raise self.failure" in "".join(traceback.format_tb(caught.value.__traceback__))
        assert items.state_dict() == {"at": 3}


def test_close_ends_the_thread_and_is_final_until_a_state_is_loaded():
    items = Prefetcher(Counter(), depth=2)
    next(items)
    assert len(prefetch_threads()) == 1
    items.close()
    items.close()
    assert not prefetch_threads()
    with pytest.raises(ValueError, match="closed"):
        next(items)
    with pytest.raises(ValueError, match="closed"):
        items.state_dict()
    items.load_state_dict({"at": 5})
    assert next(items) == 5
    items.close()


def test_a_prefetcher_that_nobody_closed_takes_its_thread_along():
    items = Prefetcher(Counter(), depth=2)
    next(items)
    del items
    gc.collect()
    assert not prefetch_threads()


def test_a_prefetcher_that_was_never_used_starts_no_thread():
    items = Prefetcher(Counter(), depth=2)
    assert items.state_dict() == {"at": 0}
    assert not prefetch_threads()
    items.close()


def test_depth_0_is_an_error():
    with pytest.raises(ValueError, match="depth is 0"):
        Prefetcher(Counter(), depth=0)


def test_token_blocks_are_the_same_prefetched_and_resume_the_same():
    def make():
        return TokenBlocks(text_dataset(*range(1, 30)), pythia_like(), context_length=8, batch_size=3)

    plain = make()
    with Prefetcher(make(), depth=3) as prefetched, Prefetcher(make(), depth=2) as resumed:
        for _ in range(25):
            assert prefetched.state_dict() == plain.state_dict()
            assert_equal([next(prefetched)], [next(plain)])
        resumed.load_state_dict(prefetched.state_dict())
        assert_equal(islice(resumed, 5), islice(plain, 5))
