"""AbsTopK: the k pre-activations of every token that are farthest from 0, with their signs (arXiv:2510.00404).

A feature stands for two opposite directions, so its values may be negative. What takes activations for positive, such
as a dashboard, reads `sae.by_sign()`: a TopK SAE that computes the same with a feature for each sign.
"""

import copy
from dataclasses import fields

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from hfsae.architectures.topk import TopKSAE, TopKSAEConfig
from hfsae.autoencoder.registry import register
from hfsae.autoencoder.strategies import replayable, shardable
from hfsae.configuration import SAEConfig
from hfsae.functional import AbsTopK, Pattern, Selection
from hfsae.functional.selection import refuse_impossible_k
from hfsae.modeling import SAE


@strict
class AbsTopKSAEConfig(SAEConfig):
    """Config of an `AbsTopKSAE`; see `SAEConfig` for the shared fields.

    Args:
        k: Active features per token.

    Raises:
        ValueError: If k is not between 1 and `n_features`, or it is to be aligned.

    Example:
        >>> from hfsae import AbsTopKSAEConfig
        >>> AbsTopKSAEConfig(d_in=64, n_features=256, k=16).k
        16
    """

    model_type = "hfsae_abs_topk"

    k: int = 32

    def validate_k(self):
        refuse_impossible_k(self.k, self.n_features)

    def validate_alignment(self):
        if self.aligned:
            raise ValueError(
                "aligned=True lowers biases at the start until reconstructions are no longer too large. That does not "
                "lessen the negative features of abs_topk: leave it out."
            )


@register
@replayable
@shardable
class AbsTopKSAE(SAE):
    """`z = h` at the k h of every token that are farthest from 0. Loss: squared error, plus auxk for dead features."""

    config_class = AbsTopKSAEConfig
    config: AbsTopKSAEConfig
    default_revival = "auxk"
    signed = True

    def selection(self) -> Selection:
        return AbsTopK(self.config.k)

    def activation(self, pattern: Pattern, pre: Tensor) -> Tensor:
        return pattern.keep(pre)

    @torch.no_grad()
    def by_sign(self) -> TopKSAE:
        """The TopK SAE that computes the same, with weights of its own.

        Its feature i is this one's where that is positive, its feature n_features + i where that is negative. Of the
        two one alone is positive, so the k largest of all are the k that are farthest from 0 here.

        Example:
            >>> import torch
            >>> from hfsae import SAE, AbsTopKSAEConfig
            >>> sae = SAE.from_config(AbsTopKSAEConfig(d_in=8, n_features=32, k=4))
            >>> x = torch.randn(5, 8)
            >>> torch.allclose(sae.by_sign()(x).reconstruction, sae(x).reconstruction, atol=1e-5)
            True
        """
        known = {option.name for option in fields(TopKSAEConfig)}  # type: ignore[arg-type]
        stored = copy.deepcopy(self.config.to_diff_dict())
        options = {name: value for name, value in stored.items() if name in known}
        # What was measured of each feature is of features that are no more.
        options |= {"n_features": 2 * self.config.n_features, "metrics": None}
        pairs = TopKSAE(TopKSAEConfig(**options)).to(device=self.device, dtype=self.dtype)  # type: ignore[arg-type]
        of_features = ("encoder.weight", "encoder.bias", "W_dec")
        tensors = {
            name: torch.cat([tensor, -tensor]) if name in of_features else tensor
            for name, tensor in self.state_dict().items()
        }
        pairs.load_state_dict(tensors)
        return pairs.train(self.training)
