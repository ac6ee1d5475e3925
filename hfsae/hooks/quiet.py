"""Running a model for our own questions: in evaluation mode, without its random numbers, and unseen by our hooks."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_this_thread = threading.local()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode and every one of its modules back into its own afterwards."""
    modes = {module: module.training for module in model.modules()}
    if any(modes.values()):
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def on_the_side(model: nn.Module) -> Iterator[None]:
    """Lets the calling thread run a model for a question of ours: hooks set before do nothing, nothing is changed.

    Hooks that are set inside of the context act in it.
    """
    devices = {parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"}
    _this_thread.depth = depth_of_questions() + 1
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), evaluating(model):
            yield
    finally:
        _this_thread.depth -= 1


def depth_of_questions() -> int:
    """How many such runs the calling thread is in, one inside the other."""
    return getattr(_this_thread, "depth", 0)
