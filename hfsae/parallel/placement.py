"""Where SAEs are trained when there are several processes or devices.

* `"replicate"`: every process holds every SAE and steps on rows of its own; gradients are averaged.
* `"spread"`: each process owns some of the SAEs, weights and optimiser, and steps them on the rows of all processes;
  where a process has several devices, each device has some of them.
* `"shard"`: each process holds some of the features of every SAE (`sharded_sae.py`), and steps on all rows.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from hfsae.parallel.launching import launched_here

logger = logging.getLogger(__name__)

T = TypeVar("T")


def deal(costs: Mapping[str, int], processes: int, called: str = "process") -> dict[str, int]:
    """Which process owns each SAE: the costliest is dealt first, each to the process that has least by then.

    Args:
        costs: Parameters of each SAE by name.
        processes: The number of processes.
        called: What the log calls them.

    Returns:
        The owner's rank by name.

    Raises:
        ValueError: If a process would have none.

    Example:
        >>> deal({"wide": 400, "narrow": 100, "middle": 200}, processes=2)
        {'wide': 0, 'narrow': 1, 'middle': 1}
    """
    refuse_idle(len(costs), processes)
    held = [0] * processes
    owners = {}
    for name in sorted(costs, key=lambda name: -costs[name]):
        owners[name] = held.index(min(held))
        held[owners[name]] += costs[name]
    for rank, cost in enumerate(held):
        names = [name for name, owner in owners.items() if owner == rank]
        logger.info("%s %d trains %s (%.3g parameters)", called, rank, ", ".join(names), cost)
    return {name: owners[name] for name in costs}


def refuse_idle(saes: int, processes: int) -> None:
    """Raises where there are fewer SAEs to spread than processes.

    Raises:
        ValueError: Says how many there are, and what to do.
    """
    if saes < processes:
        raise ValueError(
            f"sae_placement='spread' gives each process SAEs of its own, but there are {saes} for {processes} "
            f"processes: launch at most {saes}, or use sae_placement='replicate' (or 'shard')."
        )


def deal_devices(costs: Mapping[str, int], devices: Sequence[torch.device]) -> dict[str, torch.device]:
    """Which of its devices a process trains each of its SAEs on, dealt as `deal` does; some may get none.

    Args:
        costs: Parameters of each SAE by name.
        devices: At least one.

    Example:
        >>> deal_devices({"wide": 400, "narrow": 100}, [torch.device("cuda:0"), torch.device("cuda:1")])
        {'wide': device(type='cuda', index=0), 'narrow': device(type='cuda', index=1)}
    """
    if len(devices) == 1 or not costs:
        return dict.fromkeys(costs, devices[0])
    dealt = deal(costs, min(len(costs), len(devices)), called=devices[0].type)
    return {name: devices[index] for name, index in dealt.items()}


def devices_here(accelerator: Accelerator) -> list[torch.device]:
    """The devices of a process, its main one first; `model_device_map` spreads the language model over them, and
    `"spread"` its SAEs."""
    kind = accelerator.device.type
    if kind == "cpu":
        return [accelerator.device]
    numbers = shared_out(torch.accelerator.device_count(), accelerator.local_process_index, launched_here())
    return [torch.device(kind, index) for index in numbers]


def own_devices(accelerator: Accelerator) -> list[torch.device]:
    """`devices_here` where other processes have others; none where all are this process's."""
    return devices_here(accelerator) if accelerator.num_processes > 1 else []


def shared_out(devices: int, process: int, processes: int) -> list[int]:
    """The numbers of a machine's devices that belong to one of its processes, the one that Accelerate gives it first.

    Args:
        devices: How many the machine has.
        process: The process's number on this machine.
        processes: How many are on this machine.

    Example:
        >>> shared_out(devices=8, process=1, processes=4)
        [1, 5]
    """
    return list(range(process, devices, processes)) or [process % devices]


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
