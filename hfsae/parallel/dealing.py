"""Which process, and which of its devices, gets which SAE."""

import logging
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator

from hfsae.parallel.launching import launched_here

logger = logging.getLogger(__name__)


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
