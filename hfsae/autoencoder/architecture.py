"""`Architecture`: what each architecture decides: which features are active, and what training minimises.

An architecture (`hfsae/architectures/`) overrides what differs from these defaults. Only `selection` has none.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from hfsae.autoencoder.objective import TrainingStep
from hfsae.autoencoder.outputs import StepState, StepStatistics
from hfsae.functional import Pattern, Selection


class Architecture:
    """The part of an SAE that each architecture writes for itself."""

    # What lives in the units of pre-activations and moves when the input scale is folded into the weights.
    _in_scaled_space: tuple[str, ...] = ("encoder.bias",)

    # How training revives dead features unless told otherwise, and λ unless told otherwise (None: has no penalty).
    default_revival: Literal["auxk", "resample", "repoint"] = "resample"
    default_sparsity_coefficient: float | None = None

    # So large a share of living features is weaker on its own than a feature that an autoencoder repoints.
    weaker_than_repointed: float = 0.3

    # What brings features to scale at the start, beside what lives in the units of pre-activations.
    _encoder_matrices: tuple[str, ...] = ("encoder.weight",)

    # Whether a feature's values may lie below 0.
    signed: bool = False

    # Into how many groups of neighbours, of one size, the features fall that are each selected among themselves.
    n_groups: int = 1

    def _declare(self, config: Any) -> None:
        """Declares further parameters; called before the weights are initialised or loaded."""

    def selection(self) -> Selection:
        """The rule that picks the active features in use (not in training)."""
        raise NotImplementedError("abstract: an architecture says which features are active")

    def training_selection(self, progress: float = 1.0) -> Selection:
        """The entries a training step needs: the active ones, and those whose gradient reaches a threshold.

        Args:
            progress: How much of the run is done, from 0 to 1, for an architecture with a schedule of its own.
        """
        return self.selection()

    def activation(self, pattern: Pattern, pre: Tensor) -> Tensor:
        """Feature values at the entries of a pattern from their pre-activations."""
        return pattern.keep(torch.relu(pre))

    def objective(self, step: TrainingStep) -> dict[str, Tensor]:
        """The weighted terms of the loss, in scaled space."""
        return {"mse": step.mse()}

    def training_statistics(self, step: TrainingStep) -> dict[str, Tensor]:
        """Further fields of `StepStatistics` that this architecture's trainer needs."""
        return {}

    @torch.no_grad()
    def start_from(self, scaled: Tensor, active: int | None = None) -> None:
        """Sets thresholds and the like from a first batch in scaled space; may be called again.

        Args:
            scaled: (N, d_in).
            active: How many features a token are to be active, where training steers their number.
        """

    @torch.no_grad()
    def after_step(self, statistics: StepStatistics, state: StepState) -> None:
        """Puts parameters back where they must be after an optimiser step."""

    @torch.no_grad()
    def calibrate(self, batches: Callable[[], Iterable[Tensor]]) -> None:
        """Sets inference-time constants from activations of their own, at the end of training."""

    @property
    def needs_calibration(self) -> bool:
        """Whether `calibrate` sets anything: else nothing has to be read for it."""
        return False

    @property
    def encoder_passes(self) -> int:
        """How often a token meets all encoder rows; more than once, a feature's value depends on those before it."""
        return 1

    @property
    def compares_features(self) -> bool:
        """Whether the loss holds features against each other, others in every step.

        All have to lie in one process then, and no step is replayed.
        """
        return False

    @property
    def operations_on_weights(self) -> float:
        """Floating point operations of a step that are as many however many tokens it has."""
        return 0.0

    def parts(self) -> "Mapping[str, Architecture]":
        """Smaller SAEs inside of this one that are measured beside it, by name."""
        return {}

    @property
    def unit_decoder_rows(self) -> bool:
        """Whether training keeps the rows of `W_dec` at unit norm."""
        return True
