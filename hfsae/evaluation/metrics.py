"""Every metric's formula, once: from pooled sums (`hfsae.evaluation.sums`) to a figure.

`evaluate_sae`, the baselines and the `evaluate` modules all end in these functions. What a metric means to a reader
and where it should lie stands in `hfsae.evaluation.healthy`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfsae.evaluation.sums import Sums

# Below this difference, in nats, removing the activation hardly hurts, and a share of it is noise.
_LEAST_DAMAGE = 0.05

# Bins of the density histogram: a quarter of a decade each, from one token in ten million to every token.
_LOG10_EDGES = [-7 + i / 4 for i in range(29)]


class Undefined(ValueError):
    """A metric has no value for these sums; the message says why."""


@dataclass(frozen=True)
class Formula:
    """How a metric is computed.

    Args:
        needs: The names of the sums it reads.
        compute: From those sums to its value; raises `Undefined` where it has none.
    """

    needs: tuple[str, ...]
    compute: Callable[[Sums], Any]


FORMULAS: dict[str, Formula] = {}
"""Every metric's formula by the metric's name, in the order in which they are reported."""


def _metric(*needs: str) -> Callable[[Callable[[Sums], Any]], Callable[[Sums], Any]]:
    def register(compute: Callable[[Sums], Any]) -> Callable[[Sums], Any]:
        FORMULAS[compute.__name__] = Formula(needs, compute)
        return compute

    return register


def _ratio(numerator: Tensor, denominator: Tensor, otherwise: str) -> float:
    if not denominator > 0:
        raise Undefined(otherwise)
    return (numerator / denominator).item()


def _per_token(sums: Sums, name: str) -> float:
    return _ratio(sums[name], sums["n_tokens"], "no token was evaluated")


def _per_prediction(sums: Sums, name: str) -> float:
    return _ratio(sums[name], sums["n_predictions"], "no predicted token was evaluated")


@_metric("active", "n_tokens")
def l0(sums: Sums) -> float:
    """Mean number of z ≠ 0 per token."""
    return _per_token(sums, "active")


@_metric("squared_error", "n_tokens")
def mse(sums: Sums) -> float:
    """Mean per token of Σ_d (x − x̂)², in the language model's own units."""
    return _per_token(sums, "squared_error")


@_metric("squared_error", "squared_deviation", "deviation", "n_tokens")
def fvu(sums: Sums) -> float:
    """Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ the pooled mean: the fraction of variance unexplained."""
    shift = sums["deviation"].square().sum() / sums["n_tokens"].clamp(min=1)
    return _ratio(sums["squared_error"], sums["squared_deviation"] - shift, "the activations do not vary")


@_metric("squared_error", "squared_deviation", "deviation", "n_tokens")
def explained_variance(sums: Sums) -> float:
    """1 − FVU: the mean predictor scores 0."""
    return 1 - fvu(sums)


@_metric("cosine", "n_tokens")
def cosine(sums: Sums) -> float:
    """Mean cos(x, x̂)."""
    return _per_token(sums, "cosine")


@_metric("reconstructed_norm", "norm")
def l2_ratio(sums: Sums) -> float:
    """Mean ‖x̂‖ / mean ‖x‖."""
    return _ratio(sums["reconstructed_norm"], sums["norm"], "all activations are 0")


@_metric("clean_nats", "n_predictions")
def ce_clean(sums: Sums) -> float:
    """Cross-entropy of the untouched model's predictions: of the next token, or of masked ones."""
    return _per_prediction(sums, "clean_nats")


@_metric("spliced_nats", "n_predictions")
def ce_spliced(sums: Sums) -> float:
    """The same with x replaced by x̂."""
    return _per_prediction(sums, "spliced_nats")


@_metric("zero_nats", "n_predictions")
def ce_zero(sums: Sums) -> float:
    """The same with x replaced by 0."""
    return _per_prediction(sums, "zero_nats")


@_metric("mean_nats", "n_predictions")
def ce_mean(sums: Sums) -> float:
    """The same with x replaced by the mean activation of other text."""
    return _per_prediction(sums, "mean_nats")


@_metric("clean_nats", "spliced_nats", "zero_nats", "n_predictions")
def loss_recovered(sums: Sums) -> float:
    """(ce_zero − ce_spliced) / (ce_zero − ce_clean)."""
    return _recovered(ce_clean(sums), ce_spliced(sums), ce_zero(sums), "0")


@_metric("clean_nats", "spliced_nats", "mean_nats", "n_predictions")
def loss_recovered_mean(sums: Sums) -> float:
    """(ce_mean − ce_spliced) / (ce_mean − ce_clean)."""
    return _recovered(ce_clean(sums), ce_spliced(sums), ce_mean(sums), "their mean")


def _recovered(clean: float, spliced: float, ablated: float, ablation: str) -> float:
    if abs(ablated - clean) < _LEAST_DAMAGE:
        raise Undefined(
            f"replacing the activations by {ablation} changes the cross-entropy by {ablated - clean:+.4f} nats, less "
            f"than {_LEAST_DAMAGE}: the model hardly uses them here, and a share of that would be noise"
        )
    return (ablated - spliced) / (ablated - clean)


@_metric("clean_nats", "spliced_nats", "n_predictions")
def ce_increase(sums: Sums) -> float:
    """ce_spliced − ce_clean."""
    return ce_spliced(sums) - ce_clean(sums)


@_metric("kl_nats", "n_predictions")
def kl(sums: Sums) -> float:
    """Mean KL(clean ‖ spliced) of the predicted distributions."""
    return _per_prediction(sums, "kl_nats")


@_metric("tokens_firing", "n_tokens")
def dead_fraction(sums: Sums) -> float:
    """Share of features that never fired."""
    if not sums["n_tokens"] > 0:
        raise Undefined("no token was evaluated")
    return (sums["tokens_firing"] == 0).double().mean().item()


@_metric("tokens_firing", "n_tokens")
def density(sums: Sums) -> dict[str, Any]:
    """Histogram over features of log10 of the share of tokens on which a feature fires.

    Returns:
        `log10_edges` (the edges of the bins; features rarer than the first edge are in the first bin), `counts`
        (features in each bin) and `never` (features that never fired, which are in no bin).
    """
    if not sums["n_tokens"] > 0:
        raise Undefined("no token was evaluated")
    fired = sums["tokens_firing"][sums["tokens_firing"] > 0]
    shares = (fired / sums["n_tokens"]).log10().clamp(_LOG10_EDGES[0], _LOG10_EDGES[-1])
    counts = torch.histogram(shares.cpu(), torch.tensor(_LOG10_EDGES, dtype=torch.float64)).hist
    return {
        "log10_edges": list(_LOG10_EDGES),
        "counts": [int(count) for count in counts],
        "never": len(sums["tokens_firing"]) - len(fired),
    }


def finalise(sums: Sums, no_predictions: str | None = None) -> dict[str, Any]:
    """Every metric whose sums are there, as plain values.

    Args:
        sums: Pooled sums.
        no_predictions: Why no predictions of a language model are among them; the metrics that need them then are
            None for this reason.

    Returns:
        Value by metric name, in the order of `FORMULAS`; None where a metric is undefined. `notes` says why, by name.
    """
    values: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for name, formula in FORMULAS.items():
        if not sums.keys() >= set(formula.needs):
            if no_predictions is not None and "n_predictions" in formula.needs:
                values[name], notes[name] = None, f"no CE: {no_predictions}"
            continue
        try:
            values[name] = formula.compute(sums)
        except Undefined as reason:
            values[name], notes[name] = None, str(reason)
    return values | {"notes": notes}
