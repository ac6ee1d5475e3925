"""Compiled code runs as it was written while hooks are on a model.

torch.compile looks at a module's hooks once, when it first compiles a call. Hooks set later are ignored, and hooks
that were there stay for good (pytorch#117758). The compiled code may be a model's, one of its parts', or that of a
function around it, which nothing on the model tells of. So all of it runs uncompiled until the last context is left.
"""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def running_as_written(models: Iterable[nn.Module]) -> Iterator[None]:
    """While open, no compiled code runs, in no thread, and `generate` of these models compiles none of its steps."""
    generating = [model for model in models if hasattr(type(model), "get_compiled_call")]
    _as_written.begin(generating)
    try:
        yield
    finally:
        _as_written.end(generating)


def uncompiled(hook: Callable) -> Callable:
    """A hook that torch.compile leaves alone, where a model is compiled while the hook is on it."""
    return torch.compiler.disable(hook) if _is_dynamo_here() else hook


class _AsWritten:
    """How many contexts want code to run as written, and what was done for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contexts = 0
        self._stance: Any = None
        self._generating: Counter[nn.Module] = Counter()

    def begin(self, generating: list[nn.Module]) -> None:
        with self._lock:
            if self._stance is None and _is_dynamo_here():
                self._stance = torch.compiler.set_stance("force_eager")
            self._contexts += 1
            for model in generating:
                # What compiles for the first time in here may be `generate`, which no stance tells of yet.
                vars(model)["get_compiled_call"] = lambda *_, model=model, **__: model.__call__
            self._generating.update(generating)

    def end(self, generating: list[nn.Module]) -> None:
        with self._lock:
            self._generating.subtract(generating)
            for model in generating:
                if not self._generating[model]:
                    del self._generating[model], vars(model)["get_compiled_call"]
            self._contexts -= 1
            if not self._contexts and self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None


_as_written = _AsWritten()


def _is_dynamo_here() -> bool:
    """Whether anything may have been compiled; dynamo takes a second to import, and is needed by nobody else."""
    return "torch._dynamo" in sys.modules
