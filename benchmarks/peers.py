"""Other SAE libraries, each driven through its own trainer, for the benchmarks that compare with them.

A peer that is not installed, or lacks an architecture, is left out: `PEERS[name](...)` gives None. They belong in a
virtual environment of their own: `pip install --no-deps sae-lens eai-sparsify dictionary-learning` beside torch and
transformers (their own requirements would replace both). All get their own defaults but for size, sparsity and steps.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

os.environ.setdefault("WANDB_MODE", "disabled")


@dataclass
class Peer:
    """One SAE in another library's training.

    Args:
        step: Takes one optimiser step on (N, d) activations.
        read_and_write: Gives the reconstruction of (N, d) activations, and which features are active: (N, n) bool.
        input_scale: What the library itself would multiply activations by, given some of them.
    """

    step: Callable[[Tensor], object]
    read_and_write: Callable[[Tensor], tuple[Tensor, Tensor]]
    input_scale: Callable[[Tensor], float]


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


def sae_lens(architecture: str, d_in: int, n_features: int, k: int, *, steps: int, batch: int) -> Peer | None:
    """SAELens' `SAETrainer` without its activation store."""
    if not installed("sae_lens"):
        return None
    import sae_lens as library
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    name, options = {
        "topk": ("TopK", {"k": k}),
        "batch_topk": ("BatchTopK", {"k": k}),
        "standard": ("Standard", {"l1_coefficient": 5.0}),
        "jumprelu": ("JumpReLU", {"l0_coefficient": 5.0}),
        "gated": ("Gated", {"l1_coefficient": 5.0}),
    }.get(architecture, (None, {}))
    if name is None:
        return None
    config = getattr(library, f"{name}TrainingSAEConfig")(d_in=d_in, d_sae=n_features, **options)
    sae = getattr(library, f"{name}TrainingSAE")(config)
    run = SAETrainerConfig(
        total_training_samples=batch * steps,
        train_batch_size_samples=batch,
        device="cpu",
        autocast=False,
        lr=3e-4,
        lr_end=3e-5,
        lr_scheduler_name="constant",
    )
    trainer = SAETrainer(cfg=run, sae=sae, data_provider=iter(()))

    def step(x: Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    @torch.no_grad()
    def read_and_write(x: Tensor) -> tuple[Tensor, Tensor]:
        features = sae.eval().encode(x)
        return sae.decode(features), features.to_dense() != 0

    return Peer(step, read_and_write, lambda x: (d_in**0.5 / x.norm(dim=1).mean()).item())


def dictionary_learning(
    architecture: str, d_in: int, n_features: int, k: int, *, steps: int, batch: int
) -> Peer | None:
    """dictionary_learning's trainers."""
    if not installed("dictionary_learning"):
        return None
    module, name, options = {
        "topk": ("top_k", "TopKTrainer", {"k": k}),
        "batch_topk": ("batch_top_k", "BatchTopKTrainer", {"k": k}),
        "standard": ("standard", "StandardTrainer", {"lr": 3e-4, "l1_penalty": 0.04}),
        "jumprelu": ("jumprelu", "JumpReluTrainer", {"target_l0": k}),
        "gated": ("gdm", "GatedSAETrainer", {"lr": 3e-4}),
    }.get(architecture, (None, None, {}))
    if name is None:
        return None
    if architecture not in ("topk", "batch_topk"):
        options = {**options, "sparsity_warmup_steps": max(2, steps // 20)}
    trainer = getattr(importlib.import_module(f"dictionary_learning.trainers.{module}"), name)(
        steps=steps + 10,
        activation_dim=d_in,
        dict_size=n_features,
        layer=0,
        lm_name="",
        device="cpu",
        warmup_steps=max(1, steps // 50),
        decay_start=None,
        **options,
    )
    taken = iter(range(10**9))

    @torch.no_grad()
    def read_and_write(x: Tensor) -> tuple[Tensor, Tensor]:
        features = trainer.ae.encode(x)
        return trainer.ae.decode(features), features != 0

    return Peer(
        lambda x: trainer.update(next(taken), x), read_and_write, lambda x: (1 / x.pow(2).sum(1).mean().sqrt()).item()
    )


def sparsify(architecture: str, d_in: int, n_features: int, k: int, *, steps: int, batch: int) -> Peer | None:
    """sparsify's `SparseCoder` with the optimiser and bookkeeping of its own trainer, which needs a language model."""
    if not installed("sparsify") or architecture != "topk":
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        from schedulefree import ScheduleFreeWrapper
        from sparsify import SparseCoder, SparseCoderConfig
        from sparsify.sign_sgd import SignSGD
    sae = SparseCoder(d_in, SparseCoderConfig(num_latents=n_features, k=k), dtype=torch.float32)
    rate = 5e-3 / (n_features / 2**14) ** 0.5
    optimiser = ScheduleFreeWrapper(SignSGD([{"params": sae.parameters(), "lr": rate}]), momentum=0.95)
    optimiser.train()
    since_fired = torch.zeros(n_features, dtype=torch.long)
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
        output = sae(x)
        active = torch.zeros(len(x), n_features, dtype=torch.bool)
        return output.sae_out, active.scatter_(1, output.latent_indices, output.latent_acts != 0)

    return Peer(step, read_and_write, lambda x: 1.0)


PEERS = {"sae_lens": sae_lens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}
