"""Architectures whose features are active above 0: biases bring L0 to where it is wanted."""

import torch
from torch import Tensor

from hfsae.autoencoder.outputs import StepState, StepStatistics
from hfsae.modeling import SAE

# In scaled space, where pre-activations are of about the size 1, for each e-fold that L0 is to move.
_SHIFT = 12.0
# The share of the run from which biases move. Before it that is λ's part: biases that rose or fell all the way cost
# up to 0.4 of the variance of a gated transcoder (16 planted directions, 64 features, 250 steps).
_MOVED_FROM = 0.8


class SteeredBiases(SAE):
    """An `SAE` that starts where enough features are active, and whose biases bring L0 to its target at the end."""

    @torch.no_grad()
    def start_from(self, scaled: Tensor, active: int | None = None) -> None:
        """Lowers the biases until so many features a token are active; of random rows half of all are."""
        if active is not None:
            self.shift_pre_activations(-self.level_of(scaled, active).clamp(min=0).to(self.dtype))

    @torch.no_grad()
    def after_step(self, statistics: StepStatistics, state: StepState) -> None:
        """Moves all biases alike where L0 is off what is wanted, over the last part of a run.

        There the learning rate falls and L0 answers little to λ. One of nearly nothing lets go of features, too, but
        brings none back.
        """
        if state.steering is not None and state.progress >= _MOVED_FROM:
            self.shift_pre_activations((_SHIFT * state.steering.pull(statistics)).to(self.dtype))
