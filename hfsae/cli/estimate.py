"""`hfsae estimate`: what a run or a sweep will need, before anything is loaded."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the config file, every training argument, and the device to estimate for."""
    from hfsae.training.config_file import add_training_options

    add_training_options(parser)
    device = parser.add_argument_group("device", "By default the one at hand, which is measured for a moment.")
    device.add_argument("--memory_gb", type=float, help="memory of each device")
    device.add_argument("--tflops", type=float, help="what a large matrix product reaches on it, in 10¹² a second")
    device.add_argument("--processes", type=int, default=1, help="processes, each with a device (default: 1)")


def run(args: argparse.Namespace) -> int:
    """Prints the estimate; 1 where the run will not fit."""
    import torch

    from hfsae.training.estimate import estimate, free_memory, measured_flops_per_second
    from hfsae.training.sweep import Sweep

    if args.config is None:
        raise ValueError("an estimate needs a YAML file.")
    sweep = Sweep.read(args.config, vars(args))
    here = (
        torch.device("cpu") if sweep.args.use_cpu else torch.accelerator.current_accelerator() or torch.device("cpu")
    )
    elsewhere = args.tflops is not None or args.memory_gb is not None
    found = estimate(
        sweep.args,
        sweep.saes,
        device_type="cuda" if elsewhere and not sweep.args.use_cpu else here.type,
        processes=args.processes,
    )
    memory = round(args.memory_gb * 1e9) if args.memory_gb is not None else free_memory(here)
    speed = args.tflops * 1e12 if args.tflops is not None else measured_flops_per_second(here)
    print(found.report(memory, speed))
    return 0 if found.peak_bytes <= memory else 1
