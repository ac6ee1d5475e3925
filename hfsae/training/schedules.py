"""What changes over a run, as pure functions of the optimiser step: learning rate and penalty warm-up."""

import math
from typing import Literal

# The learning rate of "auto": REFERENCE_RATE at REFERENCE_STEPS steps and 2**14 features.
REFERENCE_RATE = 1.5e-3
REFERENCE_STEPS = 600
_HIGHEST_RATE = 0.02
_STEPS_EXPONENT = 0.39
_WIDTH_EXPONENT = 0.5


def auto_learning_rate(n_features: int, total_steps: int) -> float:
    """The peak learning rate for a width and a length of run.

    The published 2e-4 / √(n / 2¹⁴) (Gao et al. 2024, Fig. 3) belongs to runs of 10⁵ steps and is far too low for short
    ones. The dependence on the number of steps goes through that point and one that was measured at 600 steps, see
    docs/training.md; `benchmarks/learning_rate.py` measures more. Never above 0.02: of 256 features in 10 steps the
    rule alone would ask for 0.059, which explained 0.73 of the variance where 0.02 explained 0.80.

    Args:
        n_features: Width of the SAE.
        total_steps: Optimiser steps of the run.

    Example:
        >>> from hfsae.training.schedules import auto_learning_rate
        >>> auto_learning_rate(4096, 600)
        0.003
    """
    width = (n_features / 2**14) ** -_WIDTH_EXPONENT
    return min(REFERENCE_RATE * width * (total_steps / REFERENCE_STEPS) ** -_STEPS_EXPONENT, _HIGHEST_RATE)


def learning_rate_at(
    step: int,
    total_steps: int,
    peak: float,
    *,
    kind: Literal["constant", "cosine", "linear"] = "constant",
    warmup_steps: int = 0,
    start: float | None = None,
    end: float = 0.0,
    decay_steps: int = 0,
) -> float:
    """The learning rate of an optimiser step.

    Linear from `start` to `peak` over the warm-up; then constant, or by cosine or linearly to `end` at the last step;
    over the last `decay_steps` everything is brought to 0 linearly on top.

    Args:
        step: 0 for the first step.
        total_steps: Steps of the run.
        peak: Highest rate.
        kind: Course after the warm-up.
        warmup_steps: Length of the warm-up.
        start: Rate of the first step, where there is a warm-up; None: one part in `warmup_steps + 1` of the peak,
            since a step at rate 0 would be a step for nothing.
        end: Rate at the end of a cosine or linear course.
        decay_steps: Length of the final decay; 0 for none.
    """
    if step < warmup_steps:
        # The step after the last of the warm-up is the first at the peak.
        first = peak / (warmup_steps + 1) if start is None else start
        return first + (peak - first) * step / warmup_steps
    rate = peak
    if kind != "constant":
        progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
        fallen = (1 - math.cos(math.pi * progress)) / 2 if kind == "cosine" else progress
        rate = peak + (end - peak) * fallen
    left = total_steps - step
    return rate * min(1.0, left / (decay_steps + 1))


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Rises linearly from 1/(warmup_steps + 1) to 1, which it reaches when the warm-up is over."""
    return min(1.0, (step + 1) / (warmup_steps + 1))
