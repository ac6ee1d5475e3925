"""One file an architecture, each holding its config, its model, its training objective.

Adding one: write the file, add its line here; or keep it in a package of one's own (docs/new_architecture.md).
Nothing else in the package names architectures.
"""

from hfsae.architectures.abs_topk import AbsTopKSAE, AbsTopKSAEConfig
from hfsae.architectures.batch_topk import BatchTopKSAE, BatchTopKSAEConfig
from hfsae.architectures.cross_layer import CrossLayer
from hfsae.architectures.cross_layer_transcoder import (
    CrossLayerTranscoderSAE,
    CrossLayerTranscoderSAEConfig,
    JumpReLUCrossLayerTranscoderSAE,
    JumpReLUCrossLayerTranscoderSAEConfig,
    TopKCrossLayerTranscoderSAE,
    TopKCrossLayerTranscoderSAEConfig,
)
from hfsae.architectures.crosscoder import (
    CrosscoderSAE,
    CrosscoderSAEConfig,
    JumpReLUCrosscoderSAE,
    JumpReLUCrosscoderSAEConfig,
    StandardCrosscoderSAE,
    StandardCrosscoderSAEConfig,
    TopKCrosscoderSAE,
    TopKCrosscoderSAEConfig,
)
from hfsae.architectures.gated import GatedSAE, GatedSAEConfig
from hfsae.architectures.jumprelu import JumpReLUSAE, JumpReLUSAEConfig
from hfsae.architectures.matching_pursuit import MatchingPursuitSAE, MatchingPursuitSAEConfig
from hfsae.architectures.matryoshka import MatryoshkaSAE, MatryoshkaSAEConfig
from hfsae.architectures.sources import Crosscoder
from hfsae.architectures.standard import StandardSAE, StandardSAEConfig
from hfsae.architectures.topk import TopKSAE, TopKSAEConfig
from hfsae.autoencoder.registry import (
    architecture_name,
    architecture_names,
    architectures,
    class_of,
    config_class_of,
    register,
)

__all__ = [
    "AbsTopKSAE",
    "AbsTopKSAEConfig",
    "BatchTopKSAE",
    "BatchTopKSAEConfig",
    "CrossLayer",
    "CrossLayerTranscoderSAE",
    "CrossLayerTranscoderSAEConfig",
    "Crosscoder",
    "CrosscoderSAE",
    "CrosscoderSAEConfig",
    "GatedSAE",
    "GatedSAEConfig",
    "JumpReLUCrossLayerTranscoderSAE",
    "JumpReLUCrossLayerTranscoderSAEConfig",
    "JumpReLUCrosscoderSAE",
    "JumpReLUCrosscoderSAEConfig",
    "JumpReLUSAE",
    "JumpReLUSAEConfig",
    "MatchingPursuitSAE",
    "MatchingPursuitSAEConfig",
    "MatryoshkaSAE",
    "MatryoshkaSAEConfig",
    "StandardCrosscoderSAE",
    "StandardCrosscoderSAEConfig",
    "StandardSAE",
    "StandardSAEConfig",
    "TopKCrossLayerTranscoderSAE",
    "TopKCrossLayerTranscoderSAEConfig",
    "TopKCrosscoderSAE",
    "TopKCrosscoderSAEConfig",
    "TopKSAE",
    "TopKSAEConfig",
    "architecture_name",
    "architecture_names",
    "architectures",
    "class_of",
    "config_class_of",
    "register",
]
