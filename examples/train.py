"""Trains a sparse autoencoder on a language model, measures it, saves it with its card. `hfsae train` in the open.

Offline, on the language model that comes with this repository (a few minutes on two cores):

    python examples/train.py

Any option of `hfsae.SAETrainingArguments` can be given, in a YAML file, on the command line, or both:

    python examples/train.py examples/configs/tiny.yaml --architecture jumprelu --output_dir runs/jumprelu

gpt2 at 16x, from the Hub, on one GPU:

    accelerate launch examples/train.py examples/configs/gpt2.yaml

on four GPUs (tokens per batch are per process; the run's tokens are shared):

    accelerate launch --multi_gpu --num_processes 4 examples/train.py examples/configs/gpt2.yaml

and on two processes of a machine without GPUs:

    torchrun --nproc_per_node 2 examples/train.py --use_cpu
"""

import logging
import os
import sys
from pathlib import Path

from hfsae import SAETrainer
from hfsae.evaluation.report import report
from hfsae.training.config_file import parse_training_arguments, read_config

HERE = Path(__file__).resolve().parent


def default_arguments() -> dict[str, object]:
    """The offline default, its model found from wherever this is run."""
    defaults = read_config(HERE / "configs" / "tiny.yaml")
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
