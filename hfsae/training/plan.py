"""`Plan`: what a learner does and when, worked out from the arguments for one SAE before its first step."""

from dataclasses import dataclass

from hfsae.arguments.sae_settings import revival_of
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.modeling import SAE
from hfsae.training.schedules import auto_learning_rate

# The longest dead-feature window is the first part of a run, or the tokens on which the average feature fires so many
# times if those are more, but no more than the second part, or than some steps of a short run.
#
# Too long a window leaves no time to come back: of 2 M tokens with 4,096 features and auxk, windows of a tenth, 1/34
# and 1/68 of the run left 8.5, 1.1 and 0.15 % that never fired on 65,536 held-out tokens (topk, k = 32), and explained
# 0.924, 0.924 and 0.925 of the variance. Too short a one takes rare features for dead ones: of 1.4 M tokens with 2,048
# features at k = 8, windows of 1/10, 1/23 and 1/64 left 12, 5 and 24 % (matryoshka), 3.9, 1.1 and 3.1 % (topk).
_DEAD_WINDOW_PART, _LONGEST_DEAD_WINDOW_PART = 64, 10
_DEAD_WINDOW_FIRINGS = 256
_DEAD_WINDOW_STEPS = 4


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
    def make(cls, args: SAETrainingArguments, sae: SAE, processes: int) -> "Plan":
        """Resolves every 'auto' and every share of the run."""
        total = args.total_steps_on(processes)
        tokens_per_step = args.train_batch_tokens * args.gradient_accumulation_steps * processes
        peak = args.learning_rate
        if isinstance(peak, str):
            peak = auto_learning_rate(sae.config.n_features, total)
        warmup = args.warmup_steps if args.warmup_steps >= 1 else round(args.warmup_steps * total)
        lr_end = args.lr_end if args.lr_end is not None else (peak if args.lr_start is None else args.lr_start) / 10
        coefficient, target = _sparsity(args, sae)
        density = (target or getattr(sae.config, "k", args.k)) / sae.config.n_features
        revival = revival_of(sae, args.revival)
        if revival == "repoint" and args.sae_placement == "shard":
            raise ValueError("revival='repoint' needs whole SAEs: with sae_placement='shard' use revival='auxk'.")
        return cls(
            total_steps=total,
            tokens_per_step=tokens_per_step,
            learning_rate=float(peak),
            warmup_steps=min(int(warmup), total - 1),
            decay_steps=round(args.lr_decay_fraction * total),
            lr_end=lr_end,
            revival=revival,
            dead_window=min(args.dead_feature_window, _longest_dead_window(total, tokens_per_step, density)),
            resample_steps=_resample_steps(args, total, tokens_per_step) if revival == "resample" else frozenset(),
            sparsity_coefficient=coefficient,
            sparsity_warmup_steps=round(args.sparsity_warmup_fraction * total),
            target_l0=target,
        )


def _sparsity(args: SAETrainingArguments, sae: SAE) -> tuple[float, float | None]:
    """λ at the start, and the L0 to steer to; architectures without a penalty have neither."""
    default = sae.default_sparsity_coefficient
    if default is None:
        return 0.0, None
    if args.sparsity_coefficient is not None:
        return args.sparsity_coefficient, None
    return default, args.target_l0 if args.target_l0 is not None else float(args.k)


def _longest_dead_window(total_steps: int, tokens_per_step: int, density: float) -> int:
    """Tokens without firing that are too many in this run, where the average feature fires on such a share of them."""
    run = total_steps * tokens_per_step
    enough = max(run // _DEAD_WINDOW_PART, round(_DEAD_WINDOW_FIRINGS / density))
    return max(min(enough, run // _LONGEST_DEAD_WINDOW_PART), _DEAD_WINDOW_STEPS * tokens_per_step)


def _resample_steps(args: SAETrainingArguments, total: int, tokens_per_step: int) -> frozenset[int]:
    """The steps before which dead features are resampled: every so many tokens, the last no later than half-way."""
    every = args.resample_every or total * tokens_per_step // 10
    interval = max(1, round(every / tokens_per_step))
    return frozenset(range(interval, total // 2 + 1, interval))
