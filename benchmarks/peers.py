"""Other SAE libraries, each driven through its own trainer, for the benchmarks that compare with them.

A peer that is not installed, or lacks an architecture, is left out: `PEERS[name](...)` gives None. They belong in a
virtual environment of their own: `pip install --no-deps sae-lens eai-sparsify dictionary-learning` beside torch and
transformers (their own requirements would replace both).

All get their own defaults but for size, sparsity and what they count in steps of far longer runs: the warm-ups of
dictionary_learning take 2 % of the run for the learning rate and 5 % for the penalty. On a GPU sparsify multiplies in
bfloat16, as it does for its own users; the others in float32.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from hfsae import MatryoshkaSAEConfig

os.environ.setdefault("WANDB_MODE", "disabled")
if not torch.cuda.is_available():
    # sparsify 1.3.3 decodes by Triton wherever it is installed (findings/sparsify_decodes_by_triton_without_a_gpu.sh).
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")


@dataclass
class Peer:
    """One SAE in another library's training.

    Args:
        step: Takes one optimiser step on (N, d) activations.
        read_and_write: Gives the reconstruction of (N, d) activations, and which features are active: (N, n) bool.
            BatchTopK selects among the rows that are given, k for each on average: thresholds, which the libraries
            follow through longer runs, would give each another L0.
        input_scale: What the library itself would multiply activations by, given some of them.
        save: Writes the SAE into a folder with its own project's code, in a form that hfsae reads.
        coefficient: Of the penalty that L0 follows from; None where k or L0 itself is given.
    """

    step: Callable[[Tensor], object]
    read_and_write: Callable[[Tensor], tuple[Tensor, Tensor]]
    input_scale: Callable[[Tensor], float]
    save: Callable[[Path], object]
    coefficient: float | None = None


@dataclass
class Task:
    """What a peer is to train.

    Args:
        architecture: By our name.
        d_in: Width of the activations.
        n_features: Width of the SAE.
        k: Active features a token, where that can be said.
        steps: Optimiser steps of the run.
        batch: Activations in a step.
        device: Where.
        coefficient: Of the penalty where there is one; None takes one to begin with.
        learning_rate: None takes the library's own.
    """

    architecture: str
    d_in: int
    n_features: int
    k: int
    steps: int
    batch: int
    device: str = "cpu"
    coefficient: float | None = None
    learning_rate: float | None = None

    @property
    def prefixes(self) -> list[int]:
        """Widths of the nested SAEs of matryoshka: those of ours."""
        return MatryoshkaSAEConfig(d_in=self.d_in, n_features=self.n_features, k=self.k).prefixes


def installed(module: str) -> bool:
    """Whether a library is there."""
    return importlib.util.find_spec(module) is not None


def versions() -> dict[str, str]:
    """Versions of everything that the figures depend on and that is installed."""
    found = {}
    for package in ("hfsae", "torch", "transformers", "sae-lens", "eai-sparsify", "dictionary-learning"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def sae_lens(task: Task) -> Peer | None:
    """SAELens' `SAETrainer` without its activation store."""
    if not installed("sae_lens"):
        return None
    import sae_lens as library
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    name, options, penalty, coefficient = {
        "topk": ("TopK", {"k": task.k}, None, None),
        "batch_topk": ("BatchTopK", {"k": task.k}, None, None),
        "matryoshka": ("MatryoshkaBatchTopK", {"k": task.k, "matryoshka_widths": task.prefixes}, None, None),
        "standard": ("Standard", {}, "l1_coefficient", 5.0),
        "jumprelu": ("JumpReLU", {}, "l0_coefficient", 5.0),
        "gated": ("Gated", {}, "l1_coefficient", 5.0),
    }.get(task.architecture, (None, {}, None, None))
    if name is None:
        return None
    if penalty is not None:
        coefficient = coefficient if task.coefficient is None else task.coefficient
        options = {**options, penalty: coefficient}
    config = getattr(library, f"{name}TrainingSAEConfig")(
        d_in=task.d_in, d_sae=task.n_features, device=task.device, **options
    )
    sae = getattr(library, f"{name}TrainingSAE")(config)
    rate = task.learning_rate or SAETrainerConfig.lr
    run = SAETrainerConfig(
        total_training_samples=task.batch * task.steps,
        train_batch_size_samples=task.batch,
        device=task.device,
        lr=rate,
        lr_end=rate / 10,  # as its runner's config has it
    )
    trainer = SAETrainer(cfg=run, sae=sae, data_provider=iter(()))

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    @torch.no_grad()
    def read_and_write(x: Tensor) -> tuple[Tensor, Tensor]:
        features = sae.encode(x)
        return sae.decode(features), features.to_dense() != 0

    def input_scale(x: Tensor) -> float:
        return (task.d_in**0.5 / x.norm(dim=1).mean()).item()

    # What batches share out is saved for inference as a JumpReLU, whose thresholds no calibration would set.
    save = sae.save_model if "BatchTopK" in name else sae.save_inference_model
    return Peer(step, read_and_write, input_scale, save, coefficient)


def dictionary_learning(task: Task) -> Peer | None:
    """dictionary_learning's trainers."""
    if not installed("dictionary_learning"):
        return None
    prefixes = [0, *task.prefixes]
    groups = [(wider - m) / task.n_features for m, wider in pairwise(prefixes)]
    module, name, options, coefficient = {
        "topk": ("top_k", "TopKTrainer", {"k": task.k}, None),
        "batch_topk": ("batch_top_k", "BatchTopKTrainer", {"k": task.k}, None),
        "matryoshka": (
            "matryoshka_batch_top_k",
            "MatryoshkaBatchTopKTrainer",
            {"k": task.k, "group_fractions": groups},
            None,
        ),
        "standard": ("standard", "StandardTrainer", {}, 0.1),
        "jumprelu": ("jumprelu", "JumpReluTrainer", {"target_l0": task.k}, None),
        "gated": ("gdm", "GatedSAETrainer", {}, 0.1),
    }.get(task.architecture, (None, None, {}, None))
    if name is None:
        return None
    by_batch = task.architecture in ("batch_topk", "matryoshka")
    if "k" not in options:
        options = {**options, "sparsity_warmup_steps": max(2, task.steps // 20)}
    if coefficient is not None:
        coefficient = coefficient if task.coefficient is None else task.coefficient
        options = {**options, "l1_penalty": coefficient}
    if task.learning_rate is not None:
        options = {**options, "lr": task.learning_rate}
    trainer = getattr(importlib.import_module(f"dictionary_learning.trainers.{module}"), name)(
        steps=task.steps + 10,
        activation_dim=task.d_in,
        dict_size=task.n_features,
        layer=0,
        lm_name="",
        device=task.device,
        warmup_steps=max(1, task.steps // 50),
        decay_start=None,
        **options,
    )
    taken = iter(range(10**9))

    @torch.no_grad()
    def read_and_write(x: Tensor) -> tuple[Tensor, Tensor]:
        features = trainer.ae.encode(x, use_threshold=False) if by_batch else trainer.ae.encode(x)
        return trainer.ae.decode(features), features != 0

    def save(folder: Path) -> None:
        """As its training loop does."""
        torch.save(trainer.ae.state_dict(), folder / "ae.pt")
        (folder / "config.json").write_text(json.dumps({"trainer": trainer.config, "buffer": {"ctx_len": 128}}))

    return Peer(
        lambda x: trainer.update(next(taken), x),
        read_and_write,
        lambda x: (1 / x.pow(2).sum(1).mean().sqrt()).item(),
        save,
        coefficient,
    )


def sparsify(task: Task) -> Peer | None:
    """sparsify's `SparseCoder` with the optimiser and bookkeeping of its own trainer, which needs a language model."""
    if not installed("sparsify") or task.architecture != "topk":
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        from schedulefree import ScheduleFreeWrapper
        from sparsify import SparseCoder, SparseCoderConfig
        from sparsify.sign_sgd import SignSGD
    config = SparseCoderConfig(num_latents=task.n_features, k=task.k)
    sae = SparseCoder(task.d_in, config, device=task.device, dtype=torch.float32)
    rate = task.learning_rate or 5e-3 / (task.n_features / 2**14) ** 0.5
    optimiser = ScheduleFreeWrapper(SignSGD([{"params": sae.parameters(), "lr": rate}]), momentum=0.95)
    optimiser.train()
    since_fired = torch.zeros(task.n_features, dtype=torch.long, device=task.device)
    started = []

    def step(x: Tensor) -> None:
        if not started:
            sae.b_dec.data = x.mean(0)
            started.append(True)
        sae.set_decoder_norm_to_unit_norm()
        output = sae(x)
        output.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        since_fired.add_(len(x))
        since_fired[output.latent_indices.flatten()] = 0

    @torch.no_grad()
    def read_and_write(x: Tensor) -> tuple[Tensor, Tensor]:
        optimiser.eval()  # the averaged weights, which its trainer saves
        output = sae(x)
        optimiser.train()
        active = torch.zeros(len(x), task.n_features, dtype=torch.bool, device=x.device)
        return output.sae_out.float(), active.scatter_(1, output.latent_indices, output.latent_acts != 0)

    def save(folder: Path) -> None:
        optimiser.eval()
        sae.save_to_disk(folder / "sae")
        optimiser.train()

    return Peer(step, read_and_write, lambda x: 1.0, save)


PEERS = {"sae_lens": sae_lens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}
