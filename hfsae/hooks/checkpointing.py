"""Gradient checkpointing: what runs again in the backward pass, and must then find the hooks of the forward pass."""

import inspect
import sys
from types import CodeType

import torch
from torch import nn
from torch.utils import checkpoint

_FILE = inspect.getsourcefile(checkpoint)
_REENTRANT = checkpoint.CheckpointFunction.forward.__code__


def checkpoints_gradients(model: nn.Module) -> bool:
    """Whether blocks run again in the backward pass: by transformers' own means, or in torch's wrapper (FSDP's)."""
    return any(
        (getattr(module, "gradient_checkpointing", False) and module.training)
        or "_checkpoint_wrapped_module" in module._modules
        for module in model.modules()
    )


def is_checkpointed() -> bool:
    """Whether the caller runs inside of `torch.utils.checkpoint`, whoever called that: nothing on a model tells."""
    return _function_around() is not None


def is_reentrant() -> bool:
    """Whether the innermost checkpoint that the caller runs in is a reentrant one, in which nothing has gradients."""
    return _function_around() is _REENTRANT


def backward_pass() -> int:
    """Which backward pass of autograd calls us; -1 outside of any."""
    return torch._C._current_graph_task_id()


def _function_around() -> CodeType | None:
    """The innermost function of torch's checkpoints that has called the caller; None outside of any."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == _FILE:
            return frame.f_code
        frame = frame.f_back
    return None
