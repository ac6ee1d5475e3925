"""The tanh form of GELU in one pass, where a language model spells it out."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import FastGELUActivation, NewGELUActivation

# transformers writes both as eight operations, between which GPT-2's largest tensors go through memory; under autocast
# in float32, whatever the products are in.
_SPELT_OUT = (NewGELUActivation, FastGELUActivation)

_VALUES = 1 << 16
# So many places are looked up at once: they stay in a core's cache.
_BLOCK = 1 << 16
# Past so many threads torch's own is faster, which shares its work among them; looking up is one thread's work.
_MOST_THREADS = 2


def _gelu(x: Tensor) -> Tensor:
    """`F.gelu(x, approximate="tanh")`, to the bit.

    On a CPU it takes five times as long as the exact form (torch 2.13). Numbers of 16 bits have 65,536 values, so
    there it pays to look them up: 0.45 of its time on one thread.
    """
    looked_up = x.dtype.itemsize == 2 and x.device.type == "cpu" and x.numel() > _VALUES
    if not looked_up or torch.is_grad_enabled() or torch.get_num_threads() > _MOST_THREADS:
        return F.gelu(x, approximate="tanh")
    written = torch.empty_like(x, memory_format=torch.contiguous_format)
    places, every = x.flatten().view(torch.uint16), _gelu_of_all(x.dtype)
    for some, found in zip(places.split(_BLOCK), written.view(-1).split(_BLOCK), strict=True):
        torch.index_select(every, 0, some.to(torch.int32), out=found)
    return written


def _all_of(dtype: torch.dtype) -> Tensor:
    """Every number of 16 bits, by its bits."""
    return torch.arange(_VALUES, dtype=torch.int32).to(torch.uint16).view(dtype)


@lru_cache
def _gelu_of_all(dtype: torch.dtype) -> Tensor:
    return F.gelu(_all_of(dtype), approximate="tanh")


@contextmanager
def fused_gelu(model: nn.Module) -> Iterator[None]:
    """While open, `model` (GPT-2, GPT-Neo, GPT-J, Phi, ...) uses torch's GELU, whose values differ by rounding alone.

    Modules whose `forward` something else has replaced, as accelerate does to offload weights, are left alone.
    """
    spelt_out = [m for m in model.modules() if type(m) in _SPELT_OUT and "forward" not in vars(m)]
    for module in spelt_out:
        module.forward = _gelu
    try:
        yield
    finally:
        for module in spelt_out:
            del module.forward
