"""What goes into a training step of an SAE besides activations, and what comes out of any forward."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softshrink
from transformers.utils.generic import ModelOutput

from hfsae.autoencoder.strategies import WHOLE, Partition
from hfsae.functional import Picked, SparseFeatures
from hfsae.functional.encode import Path

# What is left to λ of how far log L0 is off what is wanted; beyond that no L0 counts as above e times, or below half.
_LEFT_TO_COEFFICIENT, _FURTHEST_OFF = 0.03, (-1.0, math.log(2))


@dataclass
class Downstream:
    """What a language model makes of an SAE's reconstruction: a term of the loss, known by its gradient.

    Args:
        loss: () the weighted term.
        gradient: (N, d_out) of the term with respect to the reconstruction, in the language model's own scale.
        kl: () nats a token by which the model's predictions have changed.
        activations: (N, d_in) what the SAE read for it; None where that is the batch itself.
    """

    loss: Tensor
    gradient: Tensor
    kl: Tensor
    activations: Tensor | None = None


@dataclass
class StepStatistics:
    """Detached by-products of a training step that the trainer adds up over steps and processes.

    Args:
        tokens_firing: (n_features,) int64, on how many tokens of the batch each feature fired.
        l0: () mean number of active features per token.
        variance: () mean over tokens of the squared distance of what is reconstructed from the batch's mean, in scaled
            space.
        smallest_kept: () the smallest activation that a batch-wide selection kept, where there is one.
        squared_error: () mean over tokens of the reconstruction's squared error, in scaled space, where the loss has
            no term `mse` that says it.
        kl_nats: () nats a token by which the language model's predictions change, where that was looked at.
    """

    tokens_firing: Tensor
    l0: Tensor
    variance: Tensor
    smallest_kept: Tensor | None = None
    squared_error: Tensor | None = None
    kl_nats: Tensor | None = None


class Steering(NamedTuple):
    """The number of active features that is wanted at a step.

    Args:
        l0: () on average over tokens; NaN while it is unknown.
        share: Which part of the way there, in log, an SAE takes at once that can move L0 by itself.
    """

    l0: Tensor
    share: float

    def pull(self, statistics: StepStatistics) -> Tensor:
        """() how far log L0 is to move at once, above 0 where too few features are active."""
        off = (self.l0 / statistics.l0).log().clamp(*_FURTHEST_OFF)
        is_known = ~off.isnan() & ((statistics.l0 > 0) | (statistics.variance > 0))  # of no tokens nothing is
        return torch.where(is_known, self.share * softshrink(off, _LEFT_TO_COEFFICIENT), 0.0)


@dataclass
class StepState:
    """What the trainer tells an SAE about the step it is in; never stored on the module.

    Args:
        step: Number of optimiser steps taken before this one.
        progress: The share of the run's steps that were taken before this one, from 0 to below 1.
        sparsity_coefficient: λ now, a number or a () tensor, after warm-up and the `target_l0` controller.
        dead: (n_features,) bool, features that have not fired for the dead-feature window; None while none is.
        n_dead: Number of True in `dead`, or somewhat more: so many features are worked on. 0 while none is dead.
        auxk_alpha: Weight α of the loss by which dead features reconstruct the residual; 0 leaves it out.
        target_l0: The number of active features aimed at, where one was given.
        steering: The number aimed at in this step, on the way to `target_l0`; None where none was given.
        world_size: Number of processes whose batches make up this step.
        partition: Where the features lie.
        path: Which arithmetic to use; `"auto"` lets `hfsae.functional.encode` choose.
        downstream: A term of the loss that lies behind the SAE, in the language model; None for none.
        picked: The entries of the batch where they were found before the step; None: the step finds them.
    """

    step: int = 0
    progress: float = 0.0
    sparsity_coefficient: float | Tensor = 0.0
    dead: Tensor | None = None
    n_dead: int = 0
    auxk_alpha: float = 0.0
    target_l0: float | None = None
    steering: Steering | None = None
    world_size: int = 1
    partition: Partition = WHOLE
    path: Path = "auto"
    downstream: Downstream | None = None
    picked: Picked | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """What differs from step to step in one that is replayed: dead features, and entries."""
        dead = [self.dead] if self.dead is not None and self.n_dead else []
        return dead if self.picked is None else [*dead, self.picked.features, self.picked.per_token, self.picked.pre]

    def with_tensors(self, tensors: Iterator[Tensor]) -> "StepState":
        """The same step with the next ones in place of `tensors`, as many and in their order."""
        dead = next(tensors) if self.dead is not None and self.n_dead else self.dead
        if (picked := self.picked) is not None:
            picked = Picked(next(tensors), next(tensors), next(tensors), picked.most)
        return replace(self, dead=dead, picked=picked)


@dataclass
class SAEOutput(ModelOutput):
    """What `SAE.forward` returns.

    Iterating gives `(reconstruction, dense features)`, so `x_hat, f = sae(x)` works as in other tools; everything is
    also there by name.

    Args:
        loss: () what training minimises; None without a `StepState`.
        losses: The weighted terms of `loss` by name.
        reconstruction: The activations as the SAE writes them, in the language model's own scale: (..., d_out).
        features: The active features, see `hfsae.functional.SparseFeatures`.
        statistics: By-products of a training step; None without a `StepState`.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    reconstruction: Tensor | None = None
    features: SparseFeatures | None = field(default=None)
    statistics: StepStatistics | None = None

    def __repr__(self) -> str:
        """Shapes instead of numbers; the loss and its terms as they are."""
        return f"SAEOutput({', '.join(f'{name}={_brief(value)}' for name, value in self.items())})"

    def __iter__(self) -> Iterator[Tensor | None]:  # type: ignore[override]
        yield self.reconstruction
        yield None if self.features is None else self.features.to_dense()


def _brief(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.item():.4g}" if value.ndim == 0 else f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {_brief(term)}' for name, term in value.items())}}}"
    return "StepStatistics(…)" if isinstance(value, StepStatistics) else repr(value)
