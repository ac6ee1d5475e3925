"""Tensors that only Python's collector of circles would free, which comes seldom: memory grows until it does."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tensors_in_circles() -> Iterator[list[torch.Tensor]]:
    """Gives a list that holds, after the block, the tensors whose last holders held each other."""
    gc.collect()
    found: list[torch.Tensor] = []
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += [one for one in gc.garbage if isinstance(one, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
