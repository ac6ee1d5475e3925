"""λ of the sparsity penalty: fixed, or steered so that a given number of features is active."""

import math

import torch
from torch import Tensor

from hfsae.training.schedules import warmup_factor

# The controller moves log λ in proportion to how far off L0 will be, at its present slope, some steps ahead. Without
# looking ahead it overshoots: L0 answers to λ late, features that died on the way do not come back, and a λ of nearly
# nothing lets go but pushes nothing upwards. The slope is the difference of two averages that trail by S / (1 − S)
# steps each: a difference of neighbouring steps is mostly noise, which the bounds below, unequal as they are, would
# turn into a push to one side. How far off L0 counts as is bounded, because at the start of a run it is off by a
# factor of 30 whatever λ is: a λ that answered to that in full would have crushed the features by the time L0 has
# followed. Below the target the bound is wider, since the way back harms nothing. Chosen on runs of 366 steps
# (standard, jumprelu and gated; three small language models, 16x, targets d/16 and 32), tried on runs of 2,930 as
# well.
_QUICK, _SLOW = 0.8, 0.9
_LOOK_AHEAD_STEPS = 60
_MOST_ABOVE = 0.08
_MOST_BELOW = 0.25
# Over a run λ can move by this many e-folds for each e-fold that L0 is off; bounded for very short and very long runs.
_REACH = 64.0
_GAIN_RANGE = (0.008, 0.16)
# Over the last part of a run λ holds still while L0 stands this close (in log) to the target, so that the final
# weights are trained against the λ they end with.
_FROZEN_WITHIN = 0.05
_FROZEN_FRACTION = 0.2


# From so many steps on λ can move as far over a run as in any longer one.
_ENOUGH_STEPS = round(_REACH / _GAIN_RANGE[1])
# A target that is missed by more than this share is told.
_MISSED = 0.1


def missed_target(l0: float | None, target: float | None, steps: int, tokens_per_step: int) -> str | None:
    """What to say where a run did not end with the L0 that was asked for.

    Args:
        l0: What it ended with.
        target: What was asked for.
        steps: Steps of the run.
        tokens_per_step: Tokens in a step.

    Returns:
        A sentence with the tokens that λ needs to get there; None where it is near enough, or nothing was asked for.
    """
    if l0 is None or not target or abs(l0 / target - 1) <= _MISSED:
        return None
    needed = max(_ENOUGH_STEPS, 2 * steps)
    return (
        f"L0 is {l0:.3g}, but {target:g} was asked for: {steps:,} steps were too few for λ to get there. Train on at "
        f"least {needed * tokens_per_step:,} tokens ({needed:,} steps), or give a sparsity_coefficient."
    )


class SparsityCoefficient:
    """λ over a run: warmed up linearly, then fixed or multiplied step by step towards a number of active features.

    Everything stays on the device: reading λ would wait for the step that it belongs to.

    Args:
        initial: λ at the end of the warm-up.
        total_steps: Steps of the run.
        warmup_steps: Steps over which λ rises from 0; the controller acts during them too.
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
        self._gain = min(max(_REACH / total_steps, _GAIN_RANGE[0]), _GAIN_RANGE[1])
        self._frozen_from = total_steps - round(_FROZEN_FRACTION * total_steps)
        self._log_coefficient = torch.tensor(math.log(max(initial, 1e-30)), dtype=torch.float64, device=device)
        # Averages of log L0.
        self._quick = torch.full((), math.nan, dtype=torch.float64, device=device)
        self._slow = self._quick.clone()
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
        self._quick = torch.where(self._quick.isnan(), now, self._quick.lerp(now, 1 - _QUICK))
        self._slow = torch.where(self._slow.isnan(), now, self._slow.lerp(now, 1 - _SLOW))
        off = self._quick - math.log(self.target_l0)
        if step < self._frozen_from:
            slope = (self._quick - self._slow) / (_SLOW / (1 - _SLOW) - _QUICK / (1 - _QUICK))
            off = off + _LOOK_AHEAD_STEPS * slope
        else:
            off = torch.where(off.abs() < _FROZEN_WITHIN, 0.0, off)
        self._log_coefficient += self._gain * off.clamp(-_MOST_BELOW, _MOST_ABOVE)

    @property
    def l0(self) -> float | None:
        """L0 over the last steps; None without a target, or before the first step."""
        l0 = math.exp(self._quick.item())
        return None if math.isnan(l0) else l0

    def state_dict(self) -> dict[str, float]:
        """The logarithms of λ and of L0's two averages."""
        return {name: getattr(self, f"_{name}").item() for name in ("log_coefficient", "quick", "slow")}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes back to a saved state."""
        for name, value in state.items():
            getattr(self, f"_{name}").fill_(value)
