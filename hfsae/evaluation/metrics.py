"""What each metric is: its name, its formula, where it should lie, and where it is told."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hfsae.evaluation import formulas
from hfsae.evaluation.intervals import Interval, told_apart
from hfsae.evaluation.sums import Sums

Verdict = Literal["healthy", "outside", "warning"]


@dataclass(frozen=True)
class Metric:
    """One metric as people read it.

    Args:
        name: Its key in `config.metrics`.
        formula: From pooled sums to its value; None where training alone knows it. Raises `formulas.Undefined`.
        needs: The names of the sums that the formula reads.
        title: What people call it.
        meaning: Its definition in a few words of Markdown.
        healthy: Where good SAEs lie.
        tolerated: What lies outside deserves a warning.
        ideal: What it should be near, where no range is known.
        too_low: What a value below `tolerated` means.
        too_high: What a value above `tolerated` means.
        raise_by: What training can change when it is too low.
        lower_by: What training can change when it is too high.
        headline: Whether it stands among the few figures that say most.
        higher_is_better: Whether a baseline that reaches the value casts doubt on it.
        listed: Its place among the figures that a list of many SAEs tells of each, from 1; 0 where it is not told.
        swept: Likewise in the table of a sweep.
        on_front: Likewise for the metrics that a sweep weighs against L0.
        reported: Whether it stands in the `model-index` of a card.
        compared: Whether it is compared with the card when an SAE is verified.
    """

    name: str
    formula: Callable[[Sums], Any] | None
    needs: tuple[str, ...]
    title: str
    meaning: str
    healthy: Interval | None = None
    tolerated: Interval = Interval()
    ideal: float | None = None
    too_low: str = ""
    too_high: str = ""
    raise_by: str = ""
    lower_by: str = ""
    headline: bool = False
    higher_is_better: bool = False
    listed: int = 0
    swept: int = 0
    on_front: int = 0
    reported: bool = False
    compared: bool = False

    @property
    def expected(self) -> str:
        """`"10 – 100"`, `"> 0.95"`, `"near 1"`, or nothing."""
        if self.healthy is not None:
            return str(self.healthy)
        return "" if self.ideal is None else f"near {self.ideal:g}"

    def told(self, value: float, text: str) -> str:
        """The text of a value, with more digits where it reads as the end of a range that the value does not reach."""
        ranges = (self.tolerated, self.healthy or Interval())
        return told_apart(value, text, [end for one in ranges for end in (one.low, one.high)])

    def verdict(self, value: float, metrics: Mapping[str, Any] | None = None) -> Verdict | None:
        """How a value compares with the ranges; None where there are none, or too few tokens to tell.

        Args:
            value: The metric's value.
            metrics: All that was measured with it, which says on how many tokens.
        """
        if self.healthy is None or self._cannot_tell(metrics):
            return None
        if value not in self.tolerated:
            return "warning"
        return "healthy" if value in self.healthy else "outside"

    def _cannot_tell(self, metrics: Mapping[str, Any] | None) -> bool:
        return self.name == "dead_fraction" and metrics is not None and too_few_to_tell(metrics) is not None

    def concern(self, value: float, metrics: Mapping[str, Any] | None = None) -> str | None:
        """What is worrying about a value outside `tolerated`, as the end of a sentence; None where nothing is.

        Args:
            value: The metric's value.
            metrics: All that was measured with it, which says on how many tokens.
        """
        if self._cannot_tell(metrics):
            return None
        if self.tolerated.low is not None and value < self.tolerated.low:
            return f"below {self.tolerated.low:g}: {self.too_low}"
        if self.tolerated.high is not None and value > self.tolerated.high:
            return f"above {self.tolerated.high:g}: {self.too_high}"
        return None

    def advice(self, value: float) -> str:
        """What to try about a value outside `tolerated`."""
        return self.raise_by if self.tolerated.low is not None and value < self.tolerated.low else self.lower_by


METRICS = (
    Metric(
        "l0",
        formulas.l0,
        ("active", "n_tokens"),
        "L0",
        "features active on a token, on average",
        healthy=Interval(10, 100),
        tolerated=Interval(5, 200),
        too_low="so few features can say little about an activation",
        too_high="so many features at once are hard to read",
        raise_by="Raise k (or target_l0), or lower the sparsity coefficient.",
        lower_by="Lower k (or target_l0), or raise the sparsity coefficient.",
        headline=True,
        listed=1,
        swept=1,
        reported=True,
        compared=True,
    ),
    Metric(
        "explained_variance",
        formulas.explained_variance,
        ("squared_error", "squared_deviation", "deviation", "n_tokens"),
        "explained variance",
        "1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²: predicting the mean x̄ scores 0",
        healthy=Interval(low=0.95),
        tolerated=Interval(low=0.8),
        too_low="a good part of the activations is not in the features",
        raise_by="Train on more tokens, with more features, or with a larger k (a smaller sparsity coefficient).",
        headline=True,
        higher_is_better=True,
        listed=3,
        swept=2,
        on_front=2,
        reported=True,
        compared=True,
    ),
    Metric(
        "loss_recovered",
        formulas.loss_recovered,
        ("clean_nats", "spliced_nats", "zero_nats", "n_predictions"),
        "loss recovered",
        "(CE zero − CE spliced) / (CE zero − CE clean)",
        ideal=1,
        headline=True,
        higher_is_better=True,
        listed=2,
        swept=3,
        on_front=1,
        reported=True,
        compared=True,
    ),
    Metric(
        "ce_increase",
        formulas.ce_increase,
        ("clean_nats", "spliced_nats", "n_predictions"),
        "CE increase",
        "CE spliced − CE clean, in nats per token",
        ideal=0,
        headline=True,
        swept=4,
        reported=True,
    ),
    Metric(
        "dead_fraction",
        formulas.dead_fraction,
        ("tokens_firing", "n_tokens"),
        "dead features",
        "share of features that never fired on the evaluated tokens",
        healthy=Interval(high=0.05),
        tolerated=Interval(high=0.2),
        too_high="much of the dictionary is unused",
        lower_by="Revive dead features (auxk or resampling), train on more tokens, or use fewer features.",
        headline=True,
        listed=4,
        swept=6,
        reported=True,
        compared=True,
    ),
    Metric(
        "ce_clean",
        formulas.ce_clean,
        ("clean_nats", "n_predictions"),
        "CE clean",
        "cross-entropy of the untouched language model, in nats",
        reported=True,
    ),
    Metric(
        "ce_spliced",
        formulas.ce_spliced,
        ("spliced_nats", "n_predictions"),
        "CE spliced",
        "the same with x replaced by the reconstruction x̂",
        reported=True,
    ),
    Metric(
        "ce_zero",
        formulas.ce_zero,
        ("zero_nats", "n_predictions"),
        "CE zero",
        "the same with x replaced by 0",
        reported=True,
    ),
    Metric(
        "ce_mean",
        formulas.ce_mean,
        ("mean_nats", "n_predictions"),
        "CE mean",
        "the same with x replaced by the mean activation of other text",
        reported=True,
    ),
    Metric(
        "loss_recovered_mean",
        formulas.loss_recovered_mean,
        ("clean_nats", "spliced_nats", "mean_nats", "n_predictions"),
        "loss recovered (mean)",
        "loss recovered, with CE mean for CE zero",
        ideal=1,
    ),
    Metric(
        "kl",
        formulas.kl,
        ("kl_nats", "n_predictions"),
        "KL",
        "mean KL divergence of the spliced from the clean predictions, in nats",
        ideal=0,
        swept=5,
        reported=True,
    ),
    Metric(
        "mse",
        formulas.mse,
        ("squared_error", "n_tokens"),
        "MSE",
        "mean over tokens of ‖x − x̂‖², in the language model's own units",
        swept=7,
        reported=True,
    ),
    Metric(
        "fvu",
        formulas.fvu,
        ("squared_error", "squared_deviation", "deviation", "n_tokens"),
        "FVU",
        "1 − explained variance",
        ideal=0,
    ),
    Metric(
        "cosine",
        formulas.cosine,
        ("cosine", "n_tokens"),
        "cosine",
        "mean cosine of x and x̂",
        ideal=1,
        swept=8,
    ),
    Metric(
        "l2_ratio",
        formulas.l2_ratio,
        ("reconstructed_norm", "norm"),
        "L2 ratio",
        "mean ‖x̂‖ / mean ‖x‖: below 1, reconstructions shrink",
        ideal=1,
        swept=9,
    ),
)


def metrics_for(metrics: Mapping[str, Any]) -> tuple[Metric, ...]:
    """`METRICS`, with ranges for what was measured: L0 adds up over the layers of a cross-layer transcoder."""
    n = metrics.get("n_layers")
    if type(n) is not int or n < 2:
        return METRICS
    l0, *others = METRICS
    assert l0.healthy is not None
    return replace(l0, healthy=l0.healthy.times(n), tolerated=l0.tolerated.times(n)), *others


def names_by(place: str) -> tuple[str, ...]:
    """The metrics that have a place, in its order.

    Args:
        place: `"listed"`, `"swept"` or `"on_front"`: see `Metric`.
    """
    chosen = [metric for metric in METRICS if getattr(metric, place)]
    return tuple(metric.name for metric in sorted(chosen, key=lambda metric: getattr(metric, place)))


DENSITY = Metric(
    "density",
    formulas.density,
    ("tokens_firing", "n_tokens"),
    "feature density",
    "how many features fire on which share of the tokens",
)
"""A histogram, which no table tells."""

MEASURED = {metric.name: metric for metric in (*METRICS, DENSITY)}
"""All that an evaluation measures, by name, in the order in which it is reported."""

METRIC_TITLES = {metric.name: metric.title for metric in METRICS}
"""What people call each metric, by its name."""


# What the log of a training run says of features beside the metrics above.
TRAINING_METRICS = (
    Metric(
        "dormant_fraction",
        None,
        (),
        "dormant features",
        "share of features that have not fired for the dead-feature window of the run",
        tolerated=Interval(high=0.2),
        too_high="much of the dictionary is unused at this moment",
        lower_by="Revive dormant features (auxk or resampling), train on more tokens, or use fewer features.",
    ),
)

# A feature as frequent as the average must have had so many chances to fire before one that never did is called dead.
_LEAST_FIRINGS = 100


def too_few_to_tell(metrics: Mapping[str, Any]) -> str | None:
    """Why nothing can be said about dead features, where they were measured on too few tokens.

    Args:
        metrics: What `evaluate_sae` returned.

    Returns:
        A sentence's end with the tokens that are needed: 100 · n_features / L0. None where there are enough, or where
        the metrics do not say.
    """
    density, l0, n_tokens = (metrics.get(name) for name in ("density", "l0", "n_tokens"))
    if not isinstance(density, Mapping) or not l0 or not n_tokens:
        return None
    counts = density.get("counts")
    told = [l0, n_tokens, density.get("never"), *(counts if isinstance(counts, list) else [None])]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in told):
        return None  # a card may be of a stranger's config
    n_features = sum(told[2:])
    needed = math.ceil(_LEAST_FIRINGS * n_features / l0)
    if n_tokens >= needed:
        return None
    return f"{n_tokens:,} tokens are too few to tell which features are dead: {needed:,} would do"


def warnings_for(metrics: Mapping[str, Any]) -> list[str]:
    """What is worrying about some metrics, and what to try, one sentence or two a metric.

    Args:
        metrics: Values by name, as `evaluate_sae` returns or the trainer logs them. Others, None and NaN are passed
            over.

    Example:
        >>> warnings_for({"l0": 2.9, "dead_fraction": 0.01})  # doctest: +NORMALIZE_WHITESPACE
        ['L0: 2.9 is below 5: so few features can say little about an activation. Raise k (or target_l0), or lower the
        sparsity coefficient.']
    """
    warnings = []
    for metric in (*metrics_for(metrics), *TRAINING_METRICS):
        value = metrics.get(metric.name)
        if value is None or math.isnan(value) or (concern := metric.concern(value, metrics)) is None:
            continue
        warnings.append(f"{metric.title}: {metric.told(value, f'{value:.3g}')} is {concern}. {metric.advice(value)}")
    return warnings


def finalise(sums: Sums, no_predictions: str | None = None) -> dict[str, Any]:
    """Every metric whose sums are there, as plain values.

    Args:
        sums: Pooled sums.
        no_predictions: Why no predictions of a language model are among them; the metrics that need them then are
            None for this reason.

    Returns:
        Value by metric name, in the order of `MEASURED`; None where a metric is undefined. `notes` says why, by name.
    """
    values: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for name, metric in MEASURED.items():
        if not sums.keys() >= set(metric.needs):
            if no_predictions is not None and "n_predictions" in metric.needs:
                values[name], notes[name] = None, f"no CE: {no_predictions}"
            continue
        try:
            assert metric.formula is not None
            values[name] = metric.formula(sums)
        except formulas.Undefined as reason:
            values[name], notes[name] = None, str(reason)
    return values | {"notes": notes}
