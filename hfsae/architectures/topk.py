"""TopK: the k largest pre-activations of every token (Gao et al. 2024, arXiv:2406.04093).

`hierarchical` trains one SAE for every smaller k too (HierarchicalTopK, Balagansky et al. 2025, arXiv:2505.24473).
"""

from itertools import accumulate, pairwise
from typing import Literal, Self

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from hfsae.autoencoder.objective import TrainingStep, squared_error
from hfsae.autoencoder.registry import register
from hfsae.autoencoder.strategies import replayable, shardable
from hfsae.configuration import SAEConfig
from hfsae.functional import GroupMax, Selection, TopK
from hfsae.functional.nested import nested
from hfsae.functional.selection import refuse_impossible_k
from hfsae.modeling import SAE

# Weight of the error with 4k features: a tie-breaker beside the error with k (Gao et al. 2024, A.4).
_MULTI_TOPK_WEIGHT = 1 / 8

# Where no smaller k are given: so many in equal steps up to k.
_BUDGETS = 8


@strict
class TopKSAEConfig(SAEConfig):
    """Config of a `TopKSAE`; see `SAEConfig` for the shared fields.

    Args:
        k: Active features per token, at most (a negative pre-activation is never active).
        activation: `"topk"` keeps the k largest of all; `"groupmax"` cuts the features into k groups of neighbours and
            keeps the largest of each group (EleutherAI's sparsify).
        multi_topk: Whether ⅛ of the error with 4k features is added to the loss, which keeps reconstructions sound
            when k is changed later.
        hierarchical: Whether the loss is the mean of the errors with several smaller k and with k. One SAE is then
            good for all of them: `sae.with_k(16)`.
        hierarchical_ks: These k, rising, the last one `k`; None: k/8, k/4, 3k/8, ... and k.

    Raises:
        ValueError: If k is not between 1 and `n_features`, or with groupmax does not divide it. Likewise if
            hierarchical_ks do not rise from at least 1 to k, or come without `hierarchical`, or that with groupmax.

    Example:
        >>> from hfsae import TopKSAEConfig
        >>> TopKSAEConfig(d_in=64, expansion_factor=8, k=16).k
        16
    """

    model_type = "hfsae_topk"

    k: int = 32
    activation: Literal["topk", "groupmax"] = "topk"
    multi_topk: bool = False
    hierarchical: bool = False
    hierarchical_ks: list[int] | None = None

    @property
    def budgets(self) -> list[int]:
        """Every k that training makes the SAE good for, rising, `k` last."""
        if not self.hierarchical:
            return [self.k]
        if self.hierarchical_ks is not None:
            return list(self.hierarchical_ks)
        return sorted({max(1, self.k * part // _BUDGETS) for part in range(1, _BUDGETS + 1)})

    def validate_k(self):
        refuse_impossible_k(self.k, self.n_features)
        if self.activation == "groupmax" and self.n_features % self.k:
            raise ValueError(f"groupmax needs k groups of one size, got k={self.k} for {self.n_features} features.")

    def validate_budgets(self):
        ks = self.hierarchical_ks
        if ks is not None and not self.hierarchical:
            raise ValueError(f"hierarchical_ks={ks} count with hierarchical=True alone: set both.")
        if self.hierarchical and self.activation == "groupmax":
            raise ValueError("hierarchical needs a token's largest features, which groupmax does not pick.")
        if ks is not None and (any(k >= wider for k, wider in pairwise([0, *ks])) or ks[-1:] != [self.k]):
            raise ValueError(f"hierarchical_ks must rise to k={self.k}, got {ks}.")


@register
@replayable
@shardable
class TopKSAE(SAE):
    """`z = ReLU(h)` at the k largest h of every token. Loss: squared error, plus auxk for dead features."""

    config_class = TopKSAEConfig
    config: TopKSAEConfig
    default_revival = "repoint"

    def selection(self) -> Selection:
        return GroupMax(self.config.k) if self.config.activation == "groupmax" else TopK(self.config.k)

    def objective(self, step: TrainingStep) -> dict[str, Tensor]:
        losses = {"mse": self._mean_error(step) if self.config.hierarchical else step.mse()}
        if self.config.multi_topk:
            losses["multi_topk"] = _MULTI_TOPK_WEIGHT * self._error_with_more_features(step)
        return losses

    def _mean_error(self, step: TrainingStep) -> Tensor:
        """The mean of the errors with each of the budgets.

        What each k adds to the one before is decoded once: all errors together cost what one reconstruction costs.
        """
        rules = [step.rule(TopK(k)) for k in self.config.budgets[:-1]]
        parts = nested(step.pattern, step.values, step.pre, rules, self.config.k)
        written = accumulate(self.written(pattern, values) for pattern, values in parts)
        offset = self.offset(step.x)
        return torch.stack([squared_error(step.reconstruct(made, offset), step.target) for made in written]).mean()

    def training_statistics(self, step: TrainingStep) -> dict[str, Tensor]:
        return {"squared_error": step.mse().detach()} if self.config.hierarchical else {}

    def _error_with_more_features(self, step: TrainingStep) -> Tensor:
        wider = step.rule(TopK(min(4 * self.config.k, self.config.n_features)))
        pattern, pre = self._encode(step.x, wider, step.state.path)
        written = self.written(pattern, self.activation(pattern, pre))
        return squared_error(step.reconstruct(written, self.offset(step.x)), step.target)

    def with_k(self, k: int, activations: Tensor | None = None) -> Self:
        """As of any SAE; not with groupmax, whose groups of features are those of its own k."""
        if self.config.activation == "groupmax":
            raise ValueError(f"groupmax was trained with {self.config.k} groups of features, and has no other k.")
        other = super().with_k(k, activations)
        if self.config.hierarchical_ks is not None:
            other.config.hierarchical_ks = [*(smaller for smaller in self.config.hierarchical_ks if smaller < k), k]
        return other

    def parts(self) -> dict[str, SAE]:
        # Several sources or layers have figures of their own each, and no room for those of parts.
        smaller = [] if self.config.has_sides else self.config.budgets[:-1]
        return {f"strongest {k}": self.with_k(k) for k in smaller}
