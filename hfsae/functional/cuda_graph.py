"""A training step as one CUDA graph.

To launch the hundred and fifty kernels of a step takes Python 3 to 4 ms. For most SAEs that is more than the GPU needs
to run them. A step that does the same at every batch is recorded once and replayed in one launch.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

T = TypeVar("T")

# Calls that are run as they are before one is recorded: kernels are compiled, and the optimiser makes its moments.
_CALLS_BEFORE = 2


@dataclass(eq=False)
class _Record(Generic[T]):
    calls: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    result: T | None = None


class RecordedStep(Generic[T]):
    """A function of tensors that is recorded after a few calls, and from then on replayed.

    What it does must not depend on anything but the tensors and a key. That means the same kernels with the same
    shapes at every call, no number of the host that changes, nothing read back. Tensors that it changes in place are
    changed by a replay too. There is a record for each key and for inputs of each kind, that is their shapes and
    types.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drops all records, after tensors that the function uses were replaced by others."""
        self._records: dict[Hashable, _Record[T]] = {}
        self._inputs: dict[Hashable, list[Tensor]] = {}

    def __call__(self, run: Callable[[list[Tensor]], T], inputs: Sequence[Tensor], key: Hashable = None) -> T:
        """Runs the function.

        Args:
            run: The function, the same at every call of a key.
            inputs: Its tensors, on one CUDA device.
            key: What else it depends on.

        Returns:
            What it returned; tensors in it are written over by the next call.
        """
        kind = tuple((x.shape, x.dtype, x.device) for x in inputs)
        record = self._records.setdefault((kind, key), _Record())
        record.calls += 1
        if record.calls <= _CALLS_BEFORE:
            return run(list(inputs))
        if kind not in self._inputs:
            self._inputs[kind] = [torch.empty_like(x) for x in inputs]
        kept = self._inputs[kind]
        for place, given in zip(kept, inputs, strict=True):
            place.copy_(given)
        if record.graph is None:
            record.graph, record.result = _recorded(lambda: run(kept), inputs[0].device)
        record.graph.replay()
        assert record.result is not None
        return record.result


# The graphs in use and their devices, whose memory they take in turn: none needs what another left in it.
_graphs: WeakKeyDictionary[torch.cuda.CUDAGraph, torch.device] = WeakKeyDictionary()


def _recorded(run: Callable[[], T], device: torch.device) -> tuple[torch.cuda.CUDAGraph, T]:
    """The graph of a call that is recorded and not run, and what the call returned."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        pool = next((other.pool() for other, place in _graphs.items() if place == device), None)
        # Other threads, such as the one that pins text, may go on with what a recording forbids.
        with torch.cuda.graph(graph, pool=pool, stream=_stream(device), capture_error_mode="thread_local"):
            result = run()
    _graphs[graph] = device
    return graph, result


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where a device's graphs are recorded; left to itself torch would record all on that of the first device."""
    return torch.cuda.Stream(device)
