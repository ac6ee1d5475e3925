"""What the tests of training share: text, SAEs and runs so small that each takes a fraction of a second."""

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from hfsae import SAE, SAETrainer, SAETrainingArguments
from hfsae.architectures import config_class_of
from hfsae.autoencoder.initialisation import initialise
from hfsae.training.learner import Learner
from tests.data.tiny import WORDS, language_model, pythia_like

ARCHITECTURES = ("standard", "topk", "abs_topk", "batch_topk", "jumprelu", "gated", "matryoshka", "matching_pursuit")
OF_TWO_PLACES = tuple(name for name in ARCHITECTURES if name != "matching_pursuit")
"""Those that may read and write different things: all but those whose decoder rows read."""
D_IN = 16
BATCH = 32
"""Tokens in a batch of `arguments`."""


@cache
def text(documents: int = 300) -> Dataset:
    """Documents of 30 random words."""
    words = random.Random(0)
    return Dataset.from_dict(
        {"text": [" ".join(f"w{words.randrange(WORDS)}" for _ in range(30)) for _ in range(documents)]}
    )


def arguments(output_dir: str | Path, *, steps: int = 12, **options: Any) -> SAETrainingArguments:
    """Arguments of a run over so many steps of 32 tokens, without evaluation."""
    batch = options.get("train_batch_tokens", BATCH) * options.get("gradient_accumulation_steps", 1)
    tiny = {
        "output_dir": str(output_dir),
        "hook_point": "resid_post.1",
        "n_features": 48,
        "k": 4,
        "context_length": 12,
        "lm_batch_sequences": 4,
        "training_tokens": steps * batch,
        "train_batch_tokens": BATCH,
        "init_tokens": 2 * BATCH,
        "calibration_tokens": 128,
        "eval_tokens": 0,
        "save_steps": 0,
        "logging_steps": 1000,
        "disable_tqdm": True,
        "html_report": False,
        "use_cpu": True,
    }
    return SAETrainingArguments(**{**tiny, **options})


def trainer(
    output_dir: str | Path,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    inputs: dict[str, Any] | None = None,
    **options: Any,
) -> SAETrainer:
    """A trainer on a random language model and random text, or on the `inputs` that are given instead."""
    if inputs is None or not {"model", "activations"} & inputs.keys():
        inputs = {"model": language_model(), **(inputs or {})}
    if "model" in inputs:
        inputs = {"train_dataset": text(), "processing_class": pythia_like(), **inputs}
    return SAETrainer(args=arguments(output_dir, **options), callbacks=callbacks, **inputs)


class At(TrainerCallback):
    """Does something at the end of one step.

    Args:
        step: Optimiser steps taken by then.
        action: Gets the trainer's state, its control and the SAEs by name.
    """

    def __init__(self, step: int, action: Callable[..., Any]):
        self._step, self._action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._step:
            self._action(state=state, control=control, saes=kwargs["model"])


def stop_at(step: int) -> At:
    """A callback that ends a run early."""
    return At(step, lambda control, **_: setattr(control, "should_training_stop", True))


def contents(checkpoint: Path) -> dict[str, bytes]:
    """What must be equal, bit for bit, in two checkpoints of equal runs: every file but the run's times and log."""
    timed = {"run.json", "SHA256SUMS"}
    files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name not in timed)
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in files}


def sparse_rows(rows: int, d_in: int = D_IN, *, seed: int = 0) -> Tensor:
    """Activations made of few of 2·d_in directions, which are the same for every seed, off centre."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(2 * d_in, d_in, generator=generator), dim=1)
    generator.manual_seed(seed + 1)
    present = torch.rand(rows, 2 * d_in, generator=generator) < 0.1
    strength = torch.rand(rows, 2 * d_in, generator=generator) + 0.5
    return (present * strength) @ directions + 0.3


def make_sae(architecture: str, rows: Tensor | None = None, target: Tensor | None = None, **options: Any) -> SAE:
    """An SAE of 48 features, started from the rows given, of a transcoder with what it is to write."""
    config_class = config_class_of(architecture)
    if "k" in config_class.__dataclass_fields__:
        options = {"k": 4, **options}
    torch.manual_seed(0)
    sae = SAE.from_config(config_class(**{"d_in": D_IN, "n_features": 48, **options}))
    return initialise(sae, sparse_rows(256) if rows is None else rows, target=target)


def make_learner(sae: SAE, output_dir: str | Path = "unused", **options: Any) -> Learner:
    """A learner on one process; nothing is written."""
    return Learner("", sae, arguments(output_dir, **options), Accelerator(cpu=True))
