"""`hfsae estimate`: what a run or a sweep will need, before anything is loaded."""

from functools import partial
from typing import Annotated

from hfsae.arguments.command_options import Config, with_training_options
from hfsae.command_line import option

_DEVICE = "Device: by default the one at hand, which is measured for a moment"


@partial(with_training_options, lists=True)
def run(
    config: Config = None,
    memory_gb: Annotated[
        float | None, option("--memory_gb", "Memory of each device.", rich_help_panel=_DEVICE)
    ] = None,
    tflops: Annotated[
        float | None,
        option("--tflops", "What a large matrix product reaches on it, in 10¹² a second.", rich_help_panel=_DEVICE),
    ] = None,
    processes: Annotated[
        int,
        option("--processes", "Processes, each with a device, or a part of the CPU at hand.", rich_help_panel=_DEVICE),
    ] = 1,
    *,
    given: dict[str, str],
) -> int:
    """Prints the estimate; 1 where the run will not fit."""
    import torch

    from hfsae.estimate.machine import Machine
    from hfsae.estimate.run_needs import estimate, free_memory
    from hfsae.functional.precision import accelerator_here
    from hfsae.sweeps.sweep import Sweep

    if config is None:
        raise ValueError("an estimate needs a YAML file.")
    sweep = Sweep.read(config, given)
    here = torch.device("cpu") if sweep.args.use_cpu else accelerator_here() or torch.device("cpu")
    elsewhere = tflops is not None or memory_gb is not None
    found = estimate(
        sweep.args,
        sweep.saes,
        device_type="cuda" if elsewhere and not sweep.args.use_cpu else here.type,
        processes=processes,
    )
    memory = round(memory_gb * 1e9) if memory_gb is not None else free_memory(here)
    machine = Machine.told(tflops * 1e12) if tflops is not None else Machine.measured(here, processes)
    print(found.report(memory, machine))
    return 0 if found.peak_bytes <= memory else 1
