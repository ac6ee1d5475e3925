"""Runs of two processes: what they train, and the script that each process executes.

torchrun --nproc_per_node 2 -m tests.training.two_processes FOLDER CASE...
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from hfsae import SAE, SAETrainer
from hfsae.training.trainer import TrainOutput
from tests.training.tiny import ARCHITECTURES, At, make_sae, sparse_rows, stop_at, trainer

STEPS = 20
ROWS = 64
"""Rows of a step over all processes."""

# Whose features and loss are chosen token by token, so that it does not matter which process sees which.
PER_TOKEN = ("standard", "topk", "gated")


def train_alike(folder: Path, architecture: str, processes: int) -> TrainOutput:
    """A run that does the same work in any number of processes: fixed rows, in order, in full precision."""
    options = {
        "steps": STEPS,
        "train_batch_tokens": ROWS // processes,
        "training_tokens": STEPS * ROWS,
        "shuffle_window_tokens": 0,
        "activation_dtype": "float32",
        "learning_rate": 0.003,
        "adam_epsilon": 1e-4,  # where a gradient is next to nothing, Adam would turn its rounding into a whole step
        "revival": "none",
        **({} if architecture == "topk" else {"sparsity_coefficient": 0.3}),
    }
    inputs = {"activations": sparse_rows(2000), "saes": make_sae(architecture)}
    return trainer(folder, inputs=inputs, callbacks=[stop_at(STEPS)], **options).train()


def train_text(folder: Path, **options: str) -> TrainOutput:
    """A whole run on text, in which features die and come back."""
    tiny = {"dead_feature_window": 100, "resample_every": 200, "gradient_accumulation_steps": 2, "eval_tokens": 100}
    return trainer(folder, training_tokens=12 * 128, logging_steps=4, **tiny, **options).train()


def train_in_two_parts(folder: Path) -> TrainOutput:
    """A run that is stopped and resumed, and the same without a break beside it."""

    def part(name: str, stop: int) -> SAETrainer:
        return trainer(folder / name, callbacks=[stop_at(stop)], training_tokens=20 * 64, dead_feature_window=100)

    part("whole", 12).train()
    part("broken", 5).train()
    return part("broken", 12).train(resume_from_checkpoint=True)


def train_until_one_is_told_to_stop(folder: Path) -> TrainOutput:
    """A run of which the last process alone gets a signal, in its third step."""
    last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
    told = At(3, lambda **_: os.kill(os.getpid(), signal.SIGTERM) if last else None)
    return trainer(folder, callbacks=[told], training_tokens=100 * 64).train()


CASES = {
    **{f"alike-{name}": lambda folder, name=name: train_alike(folder, name, 2) for name in PER_TOKEN},
    **{f"text-{name}": lambda folder, name=name: train_text(folder, architecture=name) for name in ARCHITECTURES},
    "resampled": lambda folder: train_text(folder, revival="resample"),
    "two-parts": train_in_two_parts,
    "told-to-stop": train_until_one_is_told_to_stop,
}


def digest(sae: SAE) -> str:
    """Of every tensor of an SAE."""
    content = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        content.update(name.encode() + tensor.numpy().tobytes())
    return content.hexdigest()


def main(folder: str, *cases: str) -> None:
    """Trains the cases one after the other and writes down what this process holds at the end of each."""
    torch.set_num_threads(1)
    for case in cases:
        output = CASES[case](Path(folder, case))
        found = {"digest": digest(output.sae), "steps": output.steps, "completed": output.completed}
        found["metrics"] = output.metrics.get("", {})
        Path(folder, f"{case}-rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
