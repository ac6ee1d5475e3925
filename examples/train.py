"""Trains a sparse autoencoder on a language model, measures it, saves it with its card. `hfsae train` in the open.

Offline, on the language model that comes with this repository (a few minutes on two cores):

    python examples/train.py

Any argument of `hfsae.SAETrainingArguments` can be given on the command line, in a YAML file, or in both; a file that
comes along is found by its name:

    python examples/train.py tiny --architecture jumprelu --output_dir runs/jumprelu

gpt2 at 16x, from the Hub, on one GPU:

    accelerate launch examples/train.py gpt2

on four GPUs (tokens per batch are per process; the run's tokens are shared):

    accelerate launch --multi_gpu --num_processes 4 examples/train.py gpt2

and on two processes of a machine without GPUs:

    torchrun --nproc_per_node 2 examples/train.py --use_cpu
"""

import logging
import os
import sys
from pathlib import Path

from hfsae import SAETrainer
from hfsae.arguments.command_options import parse_training_arguments
from hfsae.arguments.config_file import read_config
from hfsae.evaluation.report import report

HERE = Path(__file__).resolve().parent


def default_arguments() -> dict[str, object]:
    """The offline default, its model found from wherever this is run."""
    defaults = read_config("tiny")
    return {**defaults, "model_name_or_path": os.path.relpath(HERE / "tiny_lm")}


def main(command_line: list[str] | None = None) -> None:
    """Trains as the command line says."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hfsae").setLevel(logging.INFO)
    args = parse_training_arguments(command_line, **default_arguments())
    output = SAETrainer(args=args).train()
    for name, metrics in output.metrics.items():
        print(report(metrics, title=name or None))
    if not output.completed:
        sys.exit(130)


if __name__ == "__main__":
    main()
