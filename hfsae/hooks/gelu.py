"""The tanh form of GELU in one pass, where a language model spells it out."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch.nn.functional as F
from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

# transformers writes both as eight operations, between which GPT-2's largest tensors go through memory; under autocast
# in float32, whatever the products are in.
_SPELT_OUT = (NewGELUActivation, FastGELUActivation)

_gelu = partial(F.gelu, approximate="tanh")


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
