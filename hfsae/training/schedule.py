"""What changes over a run: the learning rate, the sparsity penalty, and when dead features come back.

`Plan` is worked out from the arguments for one SAE before its first step. Learning rates are pure functions of the
step. λ of the penalty is fixed, or steered so that a given number of features is active.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hfsae.arguments.sae_settings import refuse_fixed_penalty, revival_of
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.outputs import Steering
from hfsae.modeling import SAE
from hfsae.parallel.placement import Placement

# The longest dead-feature window is the first part of a run, or the tokens on which the average feature fires so many
# times if those are more, but no more than the second part, or than some steps of a short run.
#
# Too long a window leaves no time to come back: of 2 M tokens with 4,096 features and auxk, windows of a tenth, 1/34
# and 1/68 of the run left 8.5, 1.1 and 0.15 % that never fired on 65,536 held-out tokens (topk, k = 32), and explained
# 0.924, 0.924 and 0.925 of the variance. Too short a one takes rare features for dead ones: of 1.4 M tokens with 2,048
# features at k = 8, windows of 1/10, 1/23 and 1/64 left 12, 5 and 24 % (matryoshka), 3.9, 1.1 and 3.1 % (topk).
# In short runs most features that never fire have died too late to come back. Where repointing is an architecture's
# own way, a twentieth leaves fewer than a tenth (docs/defaults.md, k = 8). Rare features of `standard` must not be
# taken for dead: of books-4l-256 it explained 0.61 with a tenth, 0.48 with a twentieth; by `repoint` 0.614 and 0.606.
_DEAD_WINDOW_PART, _LONGEST_DEAD_WINDOW_PART, _LONGEST_WHERE_REPOINTED = 64, 10, 20
_DEAD_WINDOW_FIRINGS = 256
_DEAD_WINDOW_STEPS = 4


# How often is logged where the arguments do not say it: a short run has points enough for a curve too.
_POINTS_OF_A_CURVE, _MOST_STEPS_BETWEEN_LOGS = 100, 50


@dataclass(frozen=True)
class Plan:
    """What a learner does and when, worked out from the arguments for one SAE."""

    total_steps: int
    tokens_per_step: int
    learning_rate: float
    warmup_steps: int
    decay_steps: int
    lr_end: float
    revival: str
    dead_window: int
    resample_steps: frozenset[int]
    sparsity_coefficient: float
    sparsity_warmup_steps: int
    target_l0: float | None

    @property
    def has_auxk(self) -> bool:
        """Whether dead features reconstruct what the living ones missed."""
        return self.revival in ("auxk", "repoint")

    @classmethod
    def make(cls, args: SAETrainingArguments, sae: SAE, placement: Placement) -> "Plan":
        """Resolves every 'auto' and every share of the run."""
        processes = placement.processes
        total = args.total_steps_on(processes)
        tokens_per_step = args.train_batch_tokens * args.gradient_accumulation_steps * processes
        peak = args.learning_rate
        if isinstance(peak, str):
            d_in = sae.config.d_in // sae.n_groups
            peak = auto_learning_rate(sae.config.n_features // sae.n_groups, total, d_in=d_in)
        warmup = args.warmup_steps if args.warmup_steps >= 1 else round(args.warmup_steps * total)
        lr_end = args.lr_end if args.lr_end is not None else (peak if args.lr_start is None else args.lr_start) / 10
        coefficient, target = _sparsity(args, sae)
        density = (target or getattr(sae.config, "k", args.k) * sae.n_groups) / sae.config.n_features
        revival = revival_of(sae, args.revival)
        repointed = revival == sae.default_revival == "repoint"
        return cls(
            total_steps=total,
            tokens_per_step=tokens_per_step,
            learning_rate=float(peak),
            warmup_steps=min(int(warmup), total - 1),
            decay_steps=round(args.lr_decay_fraction * total),
            lr_end=lr_end,
            revival=revival,
            dead_window=min(
                args.dead_feature_window, _longest_dead_window(total, tokens_per_step, density, repointed)
            ),
            resample_steps=_resample_steps(args, total, tokens_per_step) if revival == "resample" else frozenset(),
            sparsity_coefficient=coefficient,
            sparsity_warmup_steps=round(args.sparsity_warmup_fraction * total),
            target_l0=target,
        )


def logging_steps_of(args: SAETrainingArguments, total_steps: int) -> int:
    """Steps between logged metrics in a run of so many steps."""
    return args.logging_steps or min(max(total_steps // _POINTS_OF_A_CURVE, 1), _MOST_STEPS_BETWEEN_LOGS)


def _sparsity(args: SAETrainingArguments, sae: SAE) -> tuple[float, float | None]:
    """λ at the start, and the L0 to steer to; architectures without a penalty have neither.

    Raises:
        ValueError: If more features are to be active than there are, or λ is fixed where the loss needs their number.
    """
    default = sae.default_sparsity_coefficient
    if default is None:
        return 0.0, None
    refuse_fixed_penalty(args, sae.config)
    if args.sparsity_coefficient is not None:
        return args.sparsity_coefficient, None
    target = args.target_l0 if args.target_l0 is not None else float(args.k * sae.n_groups)
    if target > sae.config.n_features:
        named = "target_l0" if args.target_l0 is not None else "k"
        raise ValueError(
            f"{named} asks for {target:g} active features, but the SAE has {sae.config.n_features}: ask for fewer."
        )
    return default, target


def active_at_start(args: SAETrainingArguments, sae: SAE) -> int | None:
    """How many features of each group a token is to begin with, where λ steers towards a number of them."""
    target = _sparsity(args, sae)[1]
    return None if target is None else math.ceil(_START_OVER_TARGET * target / sae.n_groups)


def _longest_dead_window(total_steps: int, tokens_per_step: int, density: float, repointed: bool) -> int:
    """Tokens without firing that are too many in this run, where the average feature fires on such a share of them."""
    run = total_steps * tokens_per_step
    enough = max(run // _DEAD_WINDOW_PART, round(_DEAD_WINDOW_FIRINGS / density))
    longest = run // (_LONGEST_WHERE_REPOINTED if repointed else _LONGEST_DEAD_WINDOW_PART)
    return max(min(enough, longest), _DEAD_WINDOW_STEPS * tokens_per_step)


def _resample_steps(args: SAETrainingArguments, total: int, tokens_per_step: int) -> frozenset[int]:
    """The steps before which dead features are resampled: every so many tokens, the last no later than half-way."""
    every = args.resample_every or total * tokens_per_step // 10
    interval = max(1, round(every / tokens_per_step))
    return frozenset(range(interval, total // 2 + 1, interval))


# The learning rate of "auto": REFERENCE_RATE at REFERENCE_STEPS steps and 2**14 features.
REFERENCE_RATE = 1.5e-3
REFERENCE_STEPS = 600
# Never above the first, nor above the second over √d_in.
_HIGHEST_RATE, _HIGHEST_RATE_OF_WIDTH = 0.02, 0.25
_STEPS_EXPONENT = 0.39
_WIDTH_EXPONENT = 0.5


def auto_learning_rate(n_features: int, total_steps: int, *, d_in: int) -> float:
    """The peak learning rate for a width, a length of run and the size of activations.

    The published 2e-4 / √(n / 2¹⁴) (Gao et al. 2024, Fig. 3) belongs to runs of 10⁵ steps and is far too low for short
    ones. The dependence on the number of steps goes through that point and one that was measured at 600 steps, see
    docs/defaults.md; `benchmarks/learning_rate.py` measures more. Never above 0.02. Of 256 features in 10 steps the
    rule alone would ask for 0.059, which explained 0.73 of the variance where 0.02 explained 0.80.

    Nor above 0.25 / √d_in. Adam moves each of the d_in weights of a row by up to the rate. So a row of unit norm turns
    by up to rate · √d_in in one step, and where that is too far, many features end dead.

    Args:
        n_features: Width of the SAE.
        total_steps: Optimiser steps of the run.
        d_in: Size of the activations that a feature reads.

    Example:
        >>> from hfsae.training.schedule import auto_learning_rate
        >>> auto_learning_rate(4096, 600, d_in=256)
        0.003
    """
    width = (n_features / 2**14) ** -_WIDTH_EXPONENT
    rate = REFERENCE_RATE * width * (total_steps / REFERENCE_STEPS) ** -_STEPS_EXPONENT
    return min(rate, _HIGHEST_RATE, _HIGHEST_RATE_OF_WIDTH / math.sqrt(d_in))


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

    Linear from `start` to `peak` over the warm-up. Then constant, or by cosine or linearly to `end` at the last step.
    Over the last `decay_steps` everything is brought to 0 linearly on top.

    Args:
        step: 0 for the first step.
        total_steps: Steps of the run.
        peak: Highest rate.
        kind: Course after the warm-up.
        warmup_steps: Length of the warm-up.
        start: Rate of the first step, where there is a warm-up. None is one part in `warmup_steps + 1` of the peak,
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


# The controller moves log λ in proportion to how far off L0 will be, at its present slope, some steps ahead. Off
# means: from a path that leads from the first step's L0 to the target, in log, ever more gently, and then stays
# there. L0 falls by itself at first: held against the target alone, λ was lowered because L0 fell fast, or raised
# until it crushed features before L0 had followed. Without looking ahead L0 overshoots: it answers to λ late,
# features that died on the way do not come back, and a λ of nearly nothing lets go but pushes nothing upwards. The
# slope is the difference of two averages that trail by S / (1 − S) steps each: a difference of neighbouring steps is
# mostly noise, which the bounds below, unequal as they are, would turn into a push to one side. Below the path the
# bound is wider, since the way back harms nothing. Chosen on runs of 100 and 120 steps (standard, jumprelu, gated as
# autoencoders and transcoders; crosscoders; target 16 and 32), tried on runs of 400. The form, without the path, was
# chosen on runs of 366 steps, and tried on 2,930.
_QUICK, _SLOW = 0.8, 0.9
_PATH_FRACTION = 0.75
_LONGEST_PATH_STEPS = 200
# It looks ahead by a sixth of the run, within these.
_LOOK_AHEAD_PART = 6
_LOOK_AHEAD_STEPS = (10, 60)
# A short run lets λ move faster: these are divided by its steps.
_RISE, _FALL = 25.0, 60.0
_MOST_ABOVE = (0.08, 0.3)
_MOST_BELOW = (0.25, 1.0)
# Where L0 is above the path by more than a factor of 1.5, that bound was what kept it there: λ then rises the faster,
# the further above L0 is.
_FAR_ABOVE, _FASTER_FAR_ABOVE = math.log(1.5), 1.5
# Over a run λ can move by this many e-folds for each e-fold that L0 is off; bounded for very short and very long runs.
_REACH = 64.0
_GAIN_RANGE = (0.008, 0.1)
# What L0 is off the path, an SAE that has thresholds takes back by itself besides, so many times over a run and no
# faster than the second. Steered as fast in 900 steps, jumprelu lost 0.006 of the variance (embedded model, L0 8).
_STEERING, _MOST_STEERING = 6.0, 0.06
# Over the last part of a run λ holds still while L0 stands this close (in log) to the target, now and so many steps
# ahead, so that the final weights are trained against the λ they end with.
_FROZEN_WITHIN = 0.05
_FROZEN_STEPS = 10
_FROZEN_FRACTION = 0.2
# There the learning rate falls, and L0 answers to λ the less: λ moves so many times faster at most, as the rate falls.
_FASTEST = 4.0


# From so many steps on the target is reached.
_ENOUGH_STEPS = 100
# Thresholds start where so many times the target are active.
_START_OVER_TARGET = 3
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
        self._gain = _within(_REACH / total_steps, _GAIN_RANGE)
        self._look_ahead = _within(total_steps / _LOOK_AHEAD_PART, _LOOK_AHEAD_STEPS)
        self._most_above = _within(_RISE / total_steps, _MOST_ABOVE)
        self._most_below = _within(_FALL / total_steps, _MOST_BELOW)
        self._path_steps = min(_PATH_FRACTION * total_steps, _LONGEST_PATH_STEPS)
        self._steering = min(_STEERING / total_steps, _MOST_STEERING)
        self._frozen_from = total_steps - round(_FROZEN_FRACTION * total_steps)
        self._log_coefficient = torch.tensor(math.log(max(initial, 1e-30)), dtype=torch.float64, device=device)
        # log L0 of the first step, and averages: of log L0, and of how far it is off the path.
        self._first = torch.full((), math.nan, dtype=torch.float64, device=device)
        self._l0, self._quick, self._slow = (self._first.clone() for _ in range(3))
        self._zero = initial == 0

    def steering_at(self, step: int) -> Steering | None:
        """The L0 of the path at a step, unknown before the first `observe`; None without a target."""
        if self.target_l0 is None:
            return None
        target = math.log(self.target_l0)
        left = max(0.0, 1 - step / self._path_steps) ** 2
        return Steering((target + left * (self._first - target).clamp(min=0)).exp(), self._steering)

    def at(self, step: int) -> Tensor | float:
        """λ of a step."""
        if self._zero:
            return 0.0
        return self._log_coefficient.exp().float() * warmup_factor(step, self._warmup_steps)

    def observe(self, l0: Tensor, step: int, rate: float = 1.0) -> None:
        """Takes in the L0 of a step's batch (all processes) and moves λ.

        Args:
            l0: () mean number of active features per token.
            step: The step it belongs to.
            rate: Its learning rate, as a share of the highest one.
        """
        now = l0.double().clamp(min=1e-3).log()
        self._first = torch.where(self._first.isnan(), now, self._first)
        if (wanted := self.steering_at(step)) is None:
            return
        self._l0 = _followed(self._l0, now, _QUICK)
        off = now - wanted.l0.log()
        self._quick, self._slow = _followed(self._quick, off, _QUICK), _followed(self._slow, off, _SLOW)
        slope = (self._quick - self._slow) / (_SLOW / (1 - _SLOW) - _QUICK / (1 - _QUICK))
        push = self._quick + self._look_ahead * slope
        gain = self._gain
        if step >= self._frozen_from:
            gain /= max(rate, 1 / _FASTEST)
            soon = self._quick + _FROZEN_STEPS * slope
            push = torch.where(torch.maximum(self._quick.abs(), soon.abs()) < _FROZEN_WITHIN, 0.0, push)
        most_above = self._most_above * (1 + _FASTER_FAR_ABOVE * (self._quick - _FAR_ABOVE).clamp(min=0))
        self._log_coefficient += gain * torch.minimum(push.clamp(min=-self._most_below), most_above)

    @property
    def l0(self) -> float | None:
        """L0 over the last steps; None without a target, or before the first step."""
        l0 = math.exp(self._l0.item())
        return None if math.isnan(l0) else l0

    def state_dict(self) -> dict[str, float]:
        """The logarithms of λ and of the first L0, and the averages."""
        names = ("log_coefficient", "first", "l0", "quick", "slow")
        return {name: getattr(self, f"_{name}").item() for name in names}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes back to a saved state."""
        for name, value in state.items():
            getattr(self, f"_{name}").fill_(value)


def _within(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1])


def _followed(average: Tensor, now: Tensor, share: float) -> Tensor:
    """An average that keeps this share of itself; it begins with what comes first."""
    return torch.where(average.isnan(), now, average.lerp(now, 1 - share))
