"""Crosscoders: features shared by several sources, which are places of one model or one place of several models
(Lindsey et al. 2024).

With batch_topk: Minder et al. 2025, arXiv:2504.02922.

One for each rule that picks the active features; what they share is in `hfsae/architectures/sources.py`.
"""

from huggingface_hub.dataclasses import strict
from torch import Tensor

from hfsae.architectures.batch_topk import BatchTopKSAE, BatchTopKSAEConfig
from hfsae.architectures.jumprelu import JumpReLUSAE, JumpReLUSAEConfig
from hfsae.architectures.sources import Crosscoder, SourcesConfig
from hfsae.architectures.standard import StandardSAE, StandardSAEConfig
from hfsae.architectures.topk import TopKSAE, TopKSAEConfig
from hfsae.autoencoder.registry import register


@strict
class CrosscoderSAEConfig(SourcesConfig, BatchTopKSAEConfig):
    """Config of a `CrosscoderSAE`; see `SAEConfig` and `BatchTopKSAEConfig` for the shared fields.

    Example:
        >>> from hfsae import CrosscoderSAEConfig
        >>> widths = {"source_names": ["base", "tuned"], "source_widths": [64, 64]}
        >>> CrosscoderSAEConfig(**widths, n_features=512, k=16).d_in
        128
    """

    model_type = "hfsae_crosscoder"


@register
class CrosscoderSAE(Crosscoder, BatchTopKSAE):
    """A crosscoder by the rule of `BatchTopKSAE`; a feature's rows, all sources' together, have unit norm."""

    config_class = CrosscoderSAEConfig
    config: CrosscoderSAEConfig


@strict
class TopKCrosscoderSAEConfig(SourcesConfig, TopKSAEConfig):
    """Config of a `TopKCrosscoderSAE`; see `SourcesConfig` and `TopKSAEConfig`."""

    model_type = "hfsae_topk_crosscoder"


@register
class TopKCrosscoderSAE(Crosscoder, TopKSAE):
    """A crosscoder by the rule of `TopKSAE`."""

    config_class = TopKCrosscoderSAEConfig
    config: TopKCrosscoderSAEConfig


@strict
class JumpReLUCrosscoderSAEConfig(SourcesConfig, JumpReLUSAEConfig):
    """Config of a `JumpReLUCrosscoderSAE`; see `SourcesConfig` and `JumpReLUSAEConfig`."""

    model_type = "hfsae_jumprelu_crosscoder"


@register
class JumpReLUCrosscoderSAE(Crosscoder, JumpReLUSAE):
    """A crosscoder by the rule of `JumpReLUSAE`."""

    config_class = JumpReLUCrosscoderSAEConfig
    config: JumpReLUCrosscoderSAEConfig


@strict
class StandardCrosscoderSAEConfig(SourcesConfig, StandardSAEConfig):
    """Config of a `StandardCrosscoderSAE`; see `SourcesConfig` and `StandardSAEConfig`."""

    model_type = "hfsae_standard_crosscoder"


@register
class StandardCrosscoderSAE(Crosscoder, StandardSAE):
    """A crosscoder with an L1 penalty that weighs a feature by the sum of its norms in all sources."""

    config_class = StandardCrosscoderSAEConfig
    config: StandardCrosscoderSAEConfig

    @property
    def penalised_norms(self) -> Tensor:
        return self.source_norms.sum(1)
