"""A CUDA graph without a GPU: the operations of a call on a CPU, kept and run again on the same tensors.

As in a graph, a number of the host is the one that it was, and what the device would have to be asked for is refused.
Triton's kernels are run by its interpreter.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")

# Whose result, or its shape, the host learns of; and what only the host makes.
_ASK = {
    *("_local_scalar_dense", "nonzero", "nonzero_numpy", "masked_select", "bincount", "equal", "is_nonzero"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "histc", "randperm"),
}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Tape(TorchDispatchMode):
    """Keeps every operation that is run inside it. Of a kernel it keeps the launch: see `keep_launches`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, Any]] = []
        self._launching = self._fresh = False
        self._of_host: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._launching:
            self._refuse(func.overloadpacket.__name__, args, kwargs or {}, result)
            self.calls.append((func, args, kwargs or {}, result))
        return result

    def launch(self, kernel: Callable, args: tuple, kwargs: dict) -> None:
        """Runs a kernel, whose operations in the interpreter are no part of the call."""
        self._launching = True
        try:
            kernel(*args, **kwargs)
        finally:
            self._launching = False
        self.calls.append((kernel, args, kwargs, None))

    def record(self, run: Callable[[], T]) -> T:
        """Runs a call. A graph would not run it while it records: so the first `replay` does nothing."""
        self._fresh = True
        with self:
            return run()

    @torch.no_grad()
    def replay(self) -> None:
        """Runs all that was kept again."""
        if not self._fresh:
            for func, args, kwargs, result in self.calls:
                for kept, made in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(kept, Tensor) and _memory(kept) != _memory(made):
                        # A shape that was changed in place stays changed.
                        kept.copy_(made if kept.is_sparse else made.reshape(kept.shape))
        self._fresh = False

    def _refuse(self, name: str, args: tuple, kwargs: dict, result: Any) -> None:
        by_mask = name in _INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1])
        unknown_length = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name == "lift_fresh":  # made of numbers of the host: a device can be filled with one, no more
            self._of_host.add(_memory(result))
        given = {_memory(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        from_host = name not in ("lift_fresh", "fill_") and given & self._of_host
        assert not (name in _ASK or by_mask or unknown_length or from_host), f"{name} asks the device, or the host"


def _memory(tensor: Tensor) -> int:
    return (tensor._values() if tensor.is_sparse else tensor).data_ptr()


def keep_launches(monkeypatch: Any) -> None:
    """Lets kernels that are launched inside a tape be kept on it."""
    from triton.runtime.interpreter import GridExecutor

    interpreted = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        mode = _get_current_dispatch_mode()
        if isinstance(mode, Tape):
            mode.launch(partial(interpreted, self), args, kwargs)
        else:
            interpreted(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", launch)
