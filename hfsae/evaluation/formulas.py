"""Every metric's formula, once: from pooled sums (`hfsae.evaluation.sums`) to a figure.

`evaluate_sae`, the baselines and the `evaluate` modules all end in these functions. `hfsae.evaluation.metrics` says
which sums each needs, what it means to a reader and where it should lie.
"""

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


def _ratio(numerator: Tensor, denominator: Tensor, otherwise: str) -> float:
    if not denominator > 0:
        raise Undefined(otherwise)
    return (numerator / denominator).item()


def _per_token(sums: Sums, name: str) -> float:
    return _ratio(sums[name], sums["n_tokens"], "no token was evaluated")


def _per_prediction(sums: Sums, name: str) -> float:
    return _ratio(sums[name], sums["n_predictions"], "no predicted token was evaluated")


def l0(sums: Sums) -> float:
    """Mean number of z ≠ 0 per token."""
    return _per_token(sums, "active")


def mse(sums: Sums) -> float:
    """Mean per token of Σ_d (x − x̂)², in the language model's own units."""
    return _per_token(sums, "squared_error")


def fvu(sums: Sums) -> float:
    """Σ‖x − x̂‖² / Σ‖x − x̄‖², x̄ the pooled mean: the fraction of variance unexplained."""
    shift = sums["deviation"].square().sum() / sums["n_tokens"].clamp(min=1)
    return _ratio(sums["squared_error"], sums["squared_deviation"] - shift, "the activations do not vary")


def explained_variance(sums: Sums) -> float:
    """1 − FVU: the mean predictor scores 0."""
    return 1 - fvu(sums)


def cosine(sums: Sums) -> float:
    """Mean cos(x, x̂)."""
    return _per_token(sums, "cosine")


def l2_ratio(sums: Sums) -> float:
    """Mean ‖x̂‖ / mean ‖x‖."""
    return _ratio(sums["reconstructed_norm"], sums["norm"], "all activations are 0")


def ce_clean(sums: Sums) -> float:
    """Cross-entropy of the untouched model's predictions: of the next token, or of masked ones."""
    return _per_prediction(sums, "clean_nats")


def ce_spliced(sums: Sums) -> float:
    """The same with x replaced by x̂."""
    return _per_prediction(sums, "spliced_nats")


def ce_zero(sums: Sums) -> float:
    """The same with x replaced by 0."""
    return _per_prediction(sums, "zero_nats")


def ce_mean(sums: Sums) -> float:
    """The same with x replaced by the mean activation of other text."""
    return _per_prediction(sums, "mean_nats")


def loss_recovered(sums: Sums) -> float:
    """(ce_zero − ce_spliced) / (ce_zero − ce_clean)."""
    return _recovered(ce_clean(sums), ce_spliced(sums), ce_zero(sums), "0")


def loss_recovered_mean(sums: Sums) -> float:
    """(ce_mean − ce_spliced) / (ce_mean − ce_clean)."""
    return _recovered(ce_clean(sums), ce_spliced(sums), ce_mean(sums), "their mean")


def _recovered(clean: float, spliced: float, ablated: float, ablation: str) -> float:
    if ablated - clean <= -_LEAST_DAMAGE:
        raise Undefined(
            f"replacing the activations by {ablation} changes the cross-entropy by {ablated - clean:+.4f} nats: the "
            "model predicts better without them, so there is no loss to recover"
        )
    if ablated - clean < _LEAST_DAMAGE:
        raise Undefined(
            f"replacing the activations by {ablation} changes the cross-entropy by {ablated - clean:+.4f} nats, less "
            f"than {_LEAST_DAMAGE}: the model hardly uses them here, and a share of that would be noise"
        )
    return (ablated - spliced) / (ablated - clean)


def ce_increase(sums: Sums) -> float:
    """ce_spliced − ce_clean."""
    return ce_spliced(sums) - ce_clean(sums)


def kl(sums: Sums) -> float:
    """Mean KL(clean ‖ spliced) of the predicted distributions."""
    return _per_prediction(sums, "kl_nats")


def dead_fraction(sums: Sums) -> float:
    """Share of features that never fired."""
    if not sums["n_tokens"] > 0:
        raise Undefined("no token was evaluated")
    return (sums["tokens_firing"] == 0).double().mean().item()


def density(sums: Sums) -> dict[str, Any]:
    """Histogram over features of log10 of the share of tokens on which a feature fires.

    Returns:
        `log10_edges` are the edges of the bins; features rarer than the first edge are in the first bin. `counts` are
        the features in each bin. `never` is the number of features that never fired, which are in no bin.
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
