import multiprocessing
import platform
import resource
from collections.abc import Callable

import psutil
import pytest
import torch

from hfsae.host_memory import freed_memory_kept, give_freed_memory_back


def new_pages_of_a_tensor(n_floats: int = 1 << 24) -> int:
    """How many pages the system has to bring for a tensor of 64 MiB after some like it were freed; the least of five.

    One that was freed is not always the one that fits: a small object may have taken its first bytes.
    """
    brought = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(n_floats)
        brought.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(brought)


def exit_code(target: Callable[[], None]) -> int | None:
    """Of a process of its own: what other tests left of the heap decides where the C library finds room."""
    process = multiprocessing.get_context("spawn").Process(target=target)
    process.start()
    process.join()
    return process.exitcode


def pages_before_and_inside() -> None:
    whole = 1 << 26
    assert new_pages_of_a_tensor() * resource.getpagesize() > whole // 2
    with freed_memory_kept():
        assert new_pages_of_a_tensor() * resource.getpagesize() < whole // 10
        kept = psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss < kept - whole // 2
    # What is evaluated afterwards makes tensors of some megabytes, which glibc by itself learns to keep.
    assert new_pages_of_a_tensor(1 << 20) * resource.getpagesize() < (1 << 22) // 10


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is only kept with glibc")
def test_inside_of_the_block_a_tensor_takes_the_memory_of_one_that_was_freed_and_after_it_the_system_has_it_back():
    assert exit_code(pages_before_and_inside) == 0


def holes_are_given_back() -> None:
    torch.ones(1 << 22)  # from now on glibc takes blocks up to this size from its heap
    at_first = psutil.Process().memory_info().rss
    blocks, between = [], []
    for _ in range(200):
        blocks.append(torch.ones(1 << 19))
        between.append(torch.ones(16))
    whole = len(blocks) * blocks[0].nbytes
    del blocks[:-1]  # the last one stays: glibc gives back by itself what is free at the end of its heap
    give_freed_memory_back()
    assert psutil.Process().memory_info().rss < at_first + whole // 4


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed memory is only given back with glibc")
def test_the_system_has_back_what_was_freed_between_small_objects_that_stay():
    assert exit_code(holes_are_given_back) == 0
