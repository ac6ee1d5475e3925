"""Cross-layer transcoders: features read before an MLP and write what it and all later MLPs write (Ameisen et
al. 2025, "Circuit Tracing"). One for each rule that picks the active features.

What they share is in `hfsae/architectures/cross_layer.py`.
"""

from huggingface_hub.dataclasses import strict

from hfsae.architectures.batch_topk import BatchTopKSAE, BatchTopKSAEConfig
from hfsae.architectures.cross_layer import CrossLayer
from hfsae.architectures.jumprelu import JumpReLUSAE, JumpReLUSAEConfig
from hfsae.architectures.layers import LayersConfig
from hfsae.architectures.topk import TopKSAE, TopKSAEConfig
from hfsae.autoencoder.registry import register
from hfsae.autoencoder.strategies import shardable


@strict
class CrossLayerTranscoderSAEConfig(LayersConfig, BatchTopKSAEConfig):
    """Config of a `CrossLayerTranscoderSAE`; see `LayersConfig` and `BatchTopKSAEConfig` for the shared fields.

    Args:
        k: Active features per token and layer, on average over a batch.

    Example:
        >>> from hfsae import CrossLayerTranscoderSAEConfig
        >>> layers = {"source_names": ["mlp_in.0", "mlp_in.1"], "source_widths": [64, 64]}
        >>> config = CrossLayerTranscoderSAEConfig(**layers, n_features=1024, k=16)
        >>> config.features_per_layer, config.d_out
        (512, 128)
    """

    model_type = "hfsae_cross_layer_transcoder"


@register
@shardable
class CrossLayerTranscoderSAE(CrossLayer, BatchTopKSAE):
    """A cross-layer transcoder by the rule of `BatchTopKSAE`: a threshold and a budget for each layer."""

    config_class = CrossLayerTranscoderSAEConfig
    config: CrossLayerTranscoderSAEConfig


@strict
class TopKCrossLayerTranscoderSAEConfig(LayersConfig, TopKSAEConfig):
    """Config of a `TopKCrossLayerTranscoderSAE`; see `LayersConfig` and `TopKSAEConfig`.

    Args:
        k: Active features per token and layer.
    """

    model_type = "hfsae_topk_cross_layer_transcoder"


@register
@shardable
class TopKCrossLayerTranscoderSAE(CrossLayer, TopKSAE):
    """A cross-layer transcoder by the rule of `TopKSAE`: the k largest of every token and layer."""

    config_class = TopKCrossLayerTranscoderSAEConfig
    config: TopKCrossLayerTranscoderSAEConfig


@strict
class JumpReLUCrossLayerTranscoderSAEConfig(LayersConfig, JumpReLUSAEConfig):
    """Config of a `JumpReLUCrossLayerTranscoderSAE`; see `LayersConfig` and `JumpReLUSAEConfig`.

    Args:
        initial_l0: Active features a token and layer at the start.
    """

    model_type = "hfsae_jumprelu_cross_layer_transcoder"


@register
@shardable
class JumpReLUCrossLayerTranscoderSAE(CrossLayer, JumpReLUSAE):
    """A cross-layer transcoder by the rule of `JumpReLUSAE`; its penalty counts the features of all layers."""

    config_class = JumpReLUCrossLayerTranscoderSAEConfig
    config: JumpReLUCrossLayerTranscoderSAEConfig
