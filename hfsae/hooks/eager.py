"""Compiled models run as they are written while hooks are on them.

torch.compile looks at a module's hooks once, when it first compiles a call: hooks set later are ignored, and hooks
that were there stay for good (pytorch#117758). So what was compiled runs uncompiled until the last context is left.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

_ABSENT = object()


@dataclass
class _Own:
    """What a module had under some names before it was made to run as written, and how many contexts want that."""

    values: dict[str, Any]
    contexts: int = field(default=0)


_made_eager: WeakKeyDictionary[nn.Module, _Own] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def running_as_written(model: nn.Module) -> Iterator[None]:
    """While open, no module of `model` runs compiled code, and `generate` compiles none of its steps."""
    with _lock:
        modules = [module for module in model.modules() if module in _made_eager or _replacements(module)]
        for module in modules:
            if module not in _made_eager:
                _made_eager[module] = _replace(module)
            _made_eager[module].contexts += 1
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                _made_eager[module].contexts -= 1
                if not _made_eager[module].contexts:
                    _put_back(module, _made_eager.pop(module))


def uncompiled(hook: Callable) -> Callable:
    """A hook that torch.compile leaves alone, where a model is compiled while the hook is on it."""
    # torch.compiler imports all of dynamo, which takes a second and is needed by nobody who compiles nothing.
    return torch.compiler.disable(hook) if "torch._dynamo" in sys.modules else hook


def _replacements(module: nn.Module) -> dict[str, Any]:
    """What stands for a module's compiled parts, by attribute."""
    found: dict[str, Any] = {}
    own = vars(module)
    if "_orig_mod" in own.get("_modules", ()):  # what torch.compile(model) returns
        found["forward"] = own["_modules"]["_orig_mod"].__call__
    elif (written := _as_written(own.get("forward"))) is not None:  # model.forward = torch.compile(model.forward)
        found["forward"] = written
    if own.get("_compiled_call_impl") is not None:  # model.compile()
        found["_compiled_call_impl"] = None
    if isinstance(module, PreTrainedModel) and hasattr(module, "get_compiled_call"):
        found["get_compiled_call"] = lambda *_, **__: module.__call__
    return found


def _as_written(forward: Any) -> Callable | None:
    """The function that a compiled one stands for; None for one that is not compiled."""
    instance = getattr(forward, "__self__", None)
    function = written = getattr(forward, "__func__", forward)
    # The id tells a compiled function from one that only took over its attributes (accelerate's, by functools.wraps).
    while getattr(written, "_torchdynamo_wrapper_id", None) == id(written):
        written = written._torchdynamo_orig_callable
    if written is function:
        return None
    return written if instance is None or hasattr(written, "__self__") else MethodType(written, instance)


def _replace(module: nn.Module) -> _Own:
    replacements = _replacements(module)
    own = _Own({name: vars(module).get(name, _ABSENT) for name in replacements})
    for name, value in replacements.items():
        object.__setattr__(module, name, value)
    return own


def _put_back(module: nn.Module, own: _Own) -> None:
    for name, value in own.values.items():
        if value is _ABSENT:
            vars(module).pop(name, None)
        else:
            object.__setattr__(module, name, value)
