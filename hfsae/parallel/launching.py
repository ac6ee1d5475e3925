"""The processes of a run, and a word where they are fewer than were asked for."""

import atexit
import gc
import os
import re
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, is_initialized
from accelerate.utils import DistributedType

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.processes import has_group

# Seconds; a thread that is done with an exchange needs microseconds, on a machine that has a core for it.
_LETTING_GO = 0.2


def start_accelerator(args: SAETrainingArguments) -> Accelerator:
    """Devices, processes and trackers.

    Raises:
        ValueError: If a tracker is unknown or not installed. Likewise if Accelerate is to cut models or to round.
        RuntimeError: If more processes were launched than Accelerate joined.
    """
    _refuse_precision_of_another()
    joined_before = has_group()
    steps_of_another = GradientState().plugin_kwargs
    trackers = [name.strip() for name in args.report_to.split(",") if name.strip() not in ("", "none")]
    accelerator = Accelerator(
        # Left to itself on a machine without an accelerator, Accelerate makes every process of a launch a world of its
        # own; told to use the CPU, it joins them.
        cpu=args.use_cpu or not torch.accelerator.is_available(),
        mixed_precision="no",  # autocast is the learner's affair
        log_with=trackers or None,  # type: ignore[arg-type]
        project_dir=args.output_dir if trackers else None,
    )
    if steps_of_another:  # of the user's Accelerator, which shares this
        accelerator.gradient_state.plugin_kwargs = steps_of_another
    if has_group() and not joined_before:
        atexit.register(part)
    refuse_other_sharding(accelerator.distributed_type)
    asked_for = max(launched(), _asked_of_accelerate())
    if asked_for != accelerator.num_processes:
        raise RuntimeError(
            f"{asked_for} processes were asked for, but Accelerate sees {accelerator.num_processes}: each "
            "process would train the whole run. `accelerate launch --cpu` starts one whatever it is asked for; "
            "on CPUs launch with `torchrun --nproc_per_node N`, or with `accelerate launch --multi_gpu "
            "--num_processes N`, and pass use_cpu."
        )
    # Accelerate leaves out what is not installed without a word.
    missing = {*trackers} - {"all"} - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise ValueError(
            f"report_to names {', '.join(missing)}, which is not installed: `pip install {' '.join(missing)}`."
        )
    if trackers:
        config = {name: str(value) for name, value in args.given().items()}
        accelerator.init_trackers(args.run_name or Path(args.output_dir).resolve().name, config=config)
    return accelerator


def _refuse_precision_of_another() -> None:
    """Raises where an Accelerator of this process rounds: it would round what each SAE computes, too.

    Raises:
        ValueError: If one does.
    """
    if is_initialized() and (precision := AcceleratorState().mixed_precision) != "no":
        raise ValueError(
            f"an Accelerator of this process has mixed_precision={precision!r}, which holds for all. Train SAEs in a "
            "process of their own, or make it with 'no'; bf16=True is for what SAEs compute."
        )


def refuse_other_sharding(kind: DistributedType) -> None:
    """Raises where Accelerate was told to cut models over processes in its own way, of which SAEs know nothing.

    Raises:
        ValueError: If it was.
    """
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"Accelerate was told to cut models over processes by {kind.value}, and hfsae cuts SAEs itself: launch "
            "without it, and pass sae_placement='shard' (or 'spread' for several SAEs)."
        )


def part() -> None:
    """Leaves the processes' group, if nobody has done so, while the interpreter is whole.

    It aborts the process where a thread of gloo's lets go of a tensor while the interpreter is being taken down. That
    happened to three of 25 launches of two processes that did nothing but three reductions (torch 2.13). It happened
    to none of 40 that parted first. Its threads end with the last of those who hold on to it: what is left of a run
    goes first. Torch's own caches of DTensors ('shard') keep them, so they are given the time to let go of what was
    exchanged last.
    """
    if has_group():
        gc.collect()
        distributed.destroy_process_group()
        time.sleep(_LETTING_GO)


def launched() -> int:
    """How many processes the launcher of this one has started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def launched_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", launched()))


def _asked_of_accelerate() -> int:
    """The `--num_processes` of the `accelerate launch` that started this process; 1 where there is none.

    On a CPU it starts one process and tells it nothing of the others that were asked for, so its own command line is
    the only place to look.
    """
    try:
        parent = psutil.Process().parent()
        command = parent.cmdline() if parent is not None else []
    except psutil.Error:
        return 1
    if not any("accelerate" in part for part in command):
        return 1
    found = re.search(r" --num[_-]processes[ =](\d+) ", f" {' '.join(command)} ")
    return int(found[1]) if found else 1
