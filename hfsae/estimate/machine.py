"""What a machine does in a second, and how long a piece of work takes it: not by its arithmetic alone.

A small model's arithmetic takes next to nothing; what it takes is Python, launches, memory and the tokeniser. A guess
that left those out would promise figures that no machine reaches.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# Operations of a large product for each byte that memory moves, and bytes a second between devices, where only the
# speed of the product was told: an H100's data sheet has 3.35 TB/s and 989 · 10¹² operations, of which large products
# reach two thirds; a port of 400 Gb/s beside each GPU moves 50 GB/s.
_OPERATIONS_A_BYTE = 200
_TOLD_LINK = 50e9
# Through the host's memory processes exchange at this share of its speed: gloo copies, adds and copies back.
_SHARE_THROUGH_MEMORY = 1 / 8
_PROBE_SIZE, _PROBE_NUMBERS = 1024, 1 << 23


@dataclass(frozen=True)
class Machine:
    """What one process has to work with, in a second.

    Args:
        flops: Operations of a large matrix product, in float32 on a CPU, else in bfloat16.
        narrow: The same in bfloat16.
        moved: Bytes that its memory reads and writes.
        exchanged: Bytes that it sends to other processes.
    """

    flops: float
    narrow: float
    moved: float
    exchanged: float

    @classmethod
    def told(cls, flops: float) -> "Machine":
        """A device of which only the speed of a large product is known."""
        return cls(flops, flops, flops / _OPERATIONS_A_BYTE, _TOLD_LINK)

    @classmethod
    def measured(cls, device: torch.device, processes: int = 1, seconds: float = 0.3) -> "Machine":
        """The device at hand; a CPU is shared by so many processes, an accelerator is not."""
        share = processes if device.type == "cpu" else 1
        moved = measured_bytes_per_second(device, seconds / 3) / share
        link = moved * _SHARE_THROUGH_MEMORY if device.type == "cpu" else _TOLD_LINK
        types = (torch.float32 if device.type == "cpu" else torch.bfloat16, torch.bfloat16)
        flops, narrow = (measured_flops_per_second(device, dtype, seconds) / share for dtype in types)
        return cls(flops, narrow, moved, link)


@dataclass(frozen=True)
class Work:
    """What something takes of a process.

    Args:
        flops: Operations, as if of large products.
        narrow: The flops that are in bfloat16 where the device is a CPU.
        moved: Bytes through memory.
        exchanged: Bytes sent.
        waited: Seconds that pass on any machine: Python, launches, the tokeniser.
    """

    flops: float = 0.0
    narrow: float = 0.0
    moved: float = 0.0
    exchanged: float = 0.0
    waited: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __mul__(self, times: float) -> "Work":
        return Work(*(getattr(self, name) * times for name in self.__dataclass_fields__))

    def seconds(self, machine: Machine) -> float:
        """How long it takes a machine that reads memory while it computes, and does the rest before and after."""
        computed = self.flops / machine.flops + self.narrow / machine.narrow
        return max(computed, self.moved / machine.moved) + self.exchanged / machine.exchanged + self.waited


def measured_flops_per_second(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """What a matrix product reaches on a device."""
    matrix = torch.randn(_PROBE_SIZE, _PROBE_SIZE, device=device, dtype=dtype)
    return _times_a_second(lambda: (matrix @ matrix).sum().item(), seconds) * 2 * _PROBE_SIZE**3


def measured_bytes_per_second(device: torch.device, seconds: float = 0.1) -> float:
    """What copying numbers moves through a device's memory, read and written."""
    numbers = torch.zeros(_PROBE_NUMBERS, dtype=torch.float32, device=device)
    copy = torch.empty_like(numbers)
    return _times_a_second(lambda: copy.copy_(numbers)[0].item(), seconds) * 2 * numbers.nbytes


def _times_a_second(does: Callable[[], object], seconds: float) -> float:
    does()  # the first time pays for everybody's setup
    times, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        does()
        times += 1
    return times / max(passed, 1e-9)
