"""TopK: the k largest pre-activations of every token (Gao et al. 2024, arXiv:2406.04093)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from torch import Tensor

from hfsae.autoencoder.objective import TrainingStep, squared_error
from hfsae.autoencoder.registry import register
from hfsae.autoencoder.strategies import replayable, shardable
from hfsae.configuration import SAEConfig
from hfsae.functional import GroupMax, Selection, TopK
from hfsae.modeling import SAE

# Weight of the error with 4k features: a tie-breaker beside the error with k (Gao et al. 2024, A.4).
_MULTI_TOPK_WEIGHT = 1 / 8


@strict
class TopKSAEConfig(SAEConfig):
    """Config of a `TopKSAE`; see `SAEConfig` for the shared fields.

    Args:
        k: Active features per token, at most (a negative pre-activation is never active).
        activation: `"topk"` keeps the k largest of all; `"groupmax"` cuts the features into k groups of neighbours and
            keeps the largest of each group (EleutherAI's sparsify).
        multi_topk: Whether ⅛ of the error with 4k features is added to the loss, which keeps reconstructions sound
            when k is changed later.

    Raises:
        ValueError: If k is not between 1 and `n_features`, or with groupmax does not divide it.

    Example:
        >>> from hfsae import TopKSAEConfig
        >>> TopKSAEConfig(d_in=64, expansion_factor=8, k=16).k
        16
    """

    model_type = "hfsae_topk"

    k: int = 32
    activation: Literal["topk", "groupmax"] = "topk"
    multi_topk: bool = False

    def validate_k(self):
        if not 1 <= self.k <= self.n_features:
            raise ValueError(f"k must be between 1 and n_features={self.n_features}, got {self.k}.")
        if self.activation == "groupmax" and self.n_features % self.k:
            raise ValueError(f"groupmax needs k groups of one size, got k={self.k} for {self.n_features} features.")


@register
@replayable
@shardable
class TopKSAE(SAE):
    """`z = ReLU(h)` at the k largest h of every token. Loss: squared error, plus auxk for dead features."""

    config_class = TopKSAEConfig
    config: TopKSAEConfig
    default_revival = "auxk"

    def selection(self) -> Selection:
        return GroupMax(self.config.k) if self.config.activation == "groupmax" else TopK(self.config.k)

    def objective(self, step: TrainingStep) -> dict[str, Tensor]:
        losses = {"mse": step.mse()}
        if self.config.multi_topk:
            losses["multi_topk"] = _MULTI_TOPK_WEIGHT * self._error_with_more_features(step)
        return losses

    def _error_with_more_features(self, step: TrainingStep) -> Tensor:
        wider = step.rule(TopK(min(4 * self.config.k, self.config.n_features)))
        pattern, pre = self._encode(step.x, wider, step.state.path)
        written = self.written(pattern, self.activation(pattern, pre))
        return squared_error(step.reconstruct(written, self.offset(step.x)), step.target)
