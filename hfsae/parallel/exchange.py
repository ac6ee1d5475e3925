"""What the processes of a run send each other between steps: rows, and plain values by SAE."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

T = TypeVar("T")

_AGREE_STEPS = 8


def rows_of_all(batch: Mapping[str, Tensor], accelerator: Accelerator, dtype: torch.dtype) -> dict[str, Tensor]:
    """The batches of all processes one after another, the same on each.

    Args:
        batch: This process's rows (N, d) by hook point.
        accelerator: The run's accelerator.
        dtype: What the rows were kept in, and travel as.

    Returns:
        (processes · N, d) rows by hook point, in the batch's dtype.
    """
    gathered = {name: accelerator.gather(rows.to(dtype)) for name, rows in batch.items()}
    return {name: rows.to(batch[name].dtype) for name, rows in gathered.items()}  # type: ignore[union-attr]


def any_process(answer: bool, step: int, accelerator: Accelerator) -> bool:
    """Whether any process answers yes: all must do the same after the same step, or they wait for each other.

    Several processes ask each other at every eighth step only, since the answer waits for the device.

    Args:
        answer: What this process answers.
        step: Steps taken, the same on all processes.
        accelerator: The run's accelerator.
    """
    if accelerator.num_processes == 1:
        return answer
    if step % _AGREE_STEPS:
        return False
    return bool(accelerator.reduce(torch.tensor(float(answer), device=accelerator.device), "sum"))


def from_all(mine: list[str], accelerator: Accelerator) -> list[str]:
    """The names that each process has found, together on all of them; mostly nobody has, which costs one number.

    Args:
        mine: What this process has found.
        accelerator: The run's accelerator.
    """
    if accelerator.num_processes == 1:
        return mine
    found = accelerator.reduce(torch.tensor(len(mine), device=accelerator.device))
    return gather_object(mine) if found else []


def from_owners(mine: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    """What each process has of the SAEs that it owns, put together on all of them.

    Args:
        mine: By name of the SAE, plain values.
        names: All names, in their order.
    """
    whole = dict(item for part in gather_object([mine]) for item in part.items())
    return {name: whole[name] for name in names if name in whole}
