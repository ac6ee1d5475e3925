"""λ of the sparsity penalty: fixed, or steered so that a given number of features is active."""

import math

import torch
from torch import Tensor

from hfsae.training.schedules import warmup_factor

# The controller looks at a moving average of the batch L0 and moves log λ in proportion to how far off it is and to
# how it changes. Found by trying on runs of 250 to 2,000 steps: slower misses the target in short runs, faster swings.
_SMOOTHING = 0.9
_GAIN = 0.02
_DAMPING = 0.5
# λ holds still over the last part of a run, so that the final weights are trained against the λ they end with.
_FROZEN_FRACTION = 0.2


class SparsityCoefficient:
    """λ over a run: warmed up linearly, then fixed or multiplied step by step towards a number of active features.

    Everything stays on the device: reading λ would wait for the step that it belongs to.

    Args:
        initial: λ at the end of the warm-up.
        total_steps: Steps of the run.
        warmup_steps: Steps over which λ rises from 0; the controller acts after them.
        target_l0: Active features per token to steer to; None keeps λ.
        device: Where L0 is measured.
    """

    def __init__(
        self,
        initial: float,
        *,
        total_steps: int,
        warmup_steps: int,
        target_l0: float | None = None,
        device: torch.device | str = "cpu",
    ):
        self.target_l0 = target_l0
        self._warmup_steps = warmup_steps
        self._frozen_from = total_steps - round(_FROZEN_FRACTION * total_steps)
        self._log_coefficient = torch.tensor(math.log(max(initial, 1e-30)), dtype=torch.float64, device=device)
        self._log_l0 = torch.full((), math.nan, dtype=torch.float64, device=device)
        self._zero = initial == 0

    def at(self, step: int) -> Tensor | float:
        """λ of a step."""
        if self._zero:
            return 0.0
        return self._log_coefficient.exp().float() * warmup_factor(step, self._warmup_steps)

    def observe(self, l0: Tensor, step: int) -> None:
        """Takes in the L0 of a step's batch (all processes) and moves λ.

        Args:
            l0: () mean number of active features per token.
            step: The step it belongs to.
        """
        if self.target_l0 is None:
            return
        now = l0.double().clamp(min=1e-3).log()
        before = torch.where(self._log_l0.isnan(), now, self._log_l0)
        self._log_l0 = before.lerp(now, 1 - _SMOOTHING)
        if self._warmup_steps <= step < self._frozen_from:
            off = self._log_l0 - math.log(self.target_l0)
            change = (self._log_l0 - before) / (1 - _SMOOTHING)
            self._log_coefficient = self._log_coefficient + (_GAIN * off + _DAMPING * _GAIN * change).clamp(-0.1, 0.1)

    def state_dict(self) -> dict[str, float]:
        """λ's and the average's logarithms."""
        return {"log_coefficient": self._log_coefficient.item(), "log_l0": self._log_l0.item()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes back to a saved state."""
        self._log_coefficient.fill_(state["log_coefficient"])
        self._log_l0 = torch.full_like(self._log_l0, state["log_l0"])
