"""Architectures whose features are active above 0: biases bring L0 to where it is wanted."""

import torch
from torch import Tensor

from hfsae.autoencoder.outputs import StepState, StepStatistics
from hfsae.modeling import SAE

# In scaled space, where pre-activations are of about the size 1, for each e-fold that L0 is to rise.
_SHIFT = 6.0
# From this share of the run on, too many features are brought down as well. Before it that is λ's part: biases that
# fell all the way cost 0.02 of the variance (gated, embedded language model, target 8, 100 steps).
_LOWERED_FROM = 0.8


class SteeredBiases(SAE):
    """An `SAE` that starts where enough features are active, and whose biases keep L0 from falling below its path."""

    @torch.no_grad()
    def start_from(self, scaled: Tensor, active: int | None = None) -> None:
        """Lowers the biases until so many features a token are active; of random rows half of all are."""
        if active is not None:
            self.shift_pre_activations(-self.level_of(scaled, active).clamp(min=0).to(self.dtype))

    @torch.no_grad()
    def after_step(self, statistics: StepStatistics, state: StepState) -> None:
        """Raises the biases where fewer features are active than are wanted, and at the end of a run lowers them, too.

        A λ of nearly nothing lets go of features but brings none back.
        """
        if state.steering is not None:
            pull = state.steering.pull(statistics)
            wanted = pull if state.progress >= _LOWERED_FROM else pull.clamp(min=0)
            self.shift_pre_activations((_SHIFT * wanted).to(self.dtype))
