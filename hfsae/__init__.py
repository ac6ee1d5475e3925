"""hfsae: train, measure, share and use sparse autoencoders on Hugging Face language models.

Importing registers the configs and models with `AutoConfig` / `AutoModel`; training, evaluation and hooks are loaded
when they are first used.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfsae.analysis import (
        FeatureCollection,
        ablate,
        collect_features,
        feature_activations,
        feature_effects,
        find_max_activating_examples,
        logit_effects,
        steer,
        untrained_tokens,
    )
    from hfsae.architectures import (
        AbsTopKSAE,
        AbsTopKSAEConfig,
        BatchTopKSAE,
        BatchTopKSAEConfig,
        CrosscoderSAE,
        CrosscoderSAEConfig,
        CrossLayerTranscoderSAE,
        CrossLayerTranscoderSAEConfig,
        GatedSAE,
        GatedSAEConfig,
        JumpReLUCrosscoderSAE,
        JumpReLUCrosscoderSAEConfig,
        JumpReLUCrossLayerTranscoderSAE,
        JumpReLUCrossLayerTranscoderSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        MatchingPursuitSAE,
        MatchingPursuitSAEConfig,
        MatryoshkaSAE,
        MatryoshkaSAEConfig,
        StandardCrosscoderSAE,
        StandardCrosscoderSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKCrosscoderSAE,
        TopKCrosscoderSAEConfig,
        TopKCrossLayerTranscoderSAE,
        TopKCrossLayerTranscoderSAEConfig,
        TopKSAE,
        TopKSAEConfig,
    )
    from hfsae.attachment import attach, attach_all
    from hfsae.autoencoder.outputs import SAEOutput
    from hfsae.circuits import Graph, trace
    from hfsae.configuration import SAEConfig
    from hfsae.diffing import ModelDiff, diff
    from hfsae.evaluation import evaluate_sae, evaluate_together
    from hfsae.evaluation.self_check import self_check
    from hfsae.hooks import capture, splice
    from hfsae.hub import find_saes, list_saes, push_saes
    from hfsae.interop import export_sae
    from hfsae.meaning import contrast, label_features
    from hfsae.modeling import SAE
    from hfsae.saved.many import load_saes
    from hfsae.steering import steer_model, steering_report
    from hfsae.tables.table import FeatureTable
    from hfsae.tables.written import featurize
    from hfsae.training import SAETrainer, SAETrainingArguments, cache_activations

__version__ = "0.1.0"

_HOME = {
    "SAE": "hfsae.modeling",
    "SAEConfig": "hfsae.configuration",
    "SAEOutput": "hfsae.autoencoder.outputs",
    "AbsTopKSAE": "hfsae.architectures",
    "AbsTopKSAEConfig": "hfsae.architectures",
    "BatchTopKSAE": "hfsae.architectures",
    "BatchTopKSAEConfig": "hfsae.architectures",
    "CrossLayerTranscoderSAE": "hfsae.architectures",
    "CrossLayerTranscoderSAEConfig": "hfsae.architectures",
    "CrosscoderSAE": "hfsae.architectures",
    "CrosscoderSAEConfig": "hfsae.architectures",
    "GatedSAE": "hfsae.architectures",
    "GatedSAEConfig": "hfsae.architectures",
    "JumpReLUCrossLayerTranscoderSAE": "hfsae.architectures",
    "JumpReLUCrossLayerTranscoderSAEConfig": "hfsae.architectures",
    "JumpReLUCrosscoderSAE": "hfsae.architectures",
    "JumpReLUCrosscoderSAEConfig": "hfsae.architectures",
    "JumpReLUSAE": "hfsae.architectures",
    "JumpReLUSAEConfig": "hfsae.architectures",
    "MatchingPursuitSAE": "hfsae.architectures",
    "MatchingPursuitSAEConfig": "hfsae.architectures",
    "MatryoshkaSAE": "hfsae.architectures",
    "MatryoshkaSAEConfig": "hfsae.architectures",
    "StandardCrosscoderSAE": "hfsae.architectures",
    "StandardCrosscoderSAEConfig": "hfsae.architectures",
    "StandardSAE": "hfsae.architectures",
    "StandardSAEConfig": "hfsae.architectures",
    "TopKCrossLayerTranscoderSAE": "hfsae.architectures",
    "TopKCrossLayerTranscoderSAEConfig": "hfsae.architectures",
    "TopKCrosscoderSAE": "hfsae.architectures",
    "TopKCrosscoderSAEConfig": "hfsae.architectures",
    "TopKSAE": "hfsae.architectures",
    "TopKSAEConfig": "hfsae.architectures",
    "FeatureCollection": "hfsae.analysis",
    "ModelDiff": "hfsae.diffing",
    "FeatureTable": "hfsae.tables.table",
    "Graph": "hfsae.circuits",
    "SAETrainer": "hfsae.training",
    "SAETrainingArguments": "hfsae.training",
    "ablate": "hfsae.analysis",
    "attach": "hfsae.attachment",
    "attach_all": "hfsae.attachment",
    "contrast": "hfsae.meaning",
    "cache_activations": "hfsae.training",
    "capture": "hfsae.hooks",
    "collect_features": "hfsae.analysis",
    "diff": "hfsae.diffing",
    "evaluate_sae": "hfsae.evaluation",
    "evaluate_together": "hfsae.evaluation",
    "export_sae": "hfsae.interop",
    "feature_activations": "hfsae.analysis",
    "feature_effects": "hfsae.analysis",
    "featurize": "hfsae.tables.written",
    "find_max_activating_examples": "hfsae.analysis",
    "find_saes": "hfsae.hub",
    "label_features": "hfsae.meaning",
    "list_saes": "hfsae.hub",
    "load_saes": "hfsae.saved.many",
    "logit_effects": "hfsae.analysis",
    "push_saes": "hfsae.hub",
    "self_check": "hfsae.evaluation.self_check",
    "splice": "hfsae.hooks",
    "steer": "hfsae.analysis",
    "steer_model": "hfsae.steering",
    "steering_report": "hfsae.steering",
    "trace": "hfsae.circuits",
    "untrained_tokens": "hfsae.analysis",
}

__all__ = [
    "SAE",
    "AbsTopKSAE",
    "AbsTopKSAEConfig",
    "BatchTopKSAE",
    "BatchTopKSAEConfig",
    "FeatureCollection",
    "FeatureTable",
    "CrossLayerTranscoderSAE",
    "CrossLayerTranscoderSAEConfig",
    "CrosscoderSAE",
    "CrosscoderSAEConfig",
    "GatedSAE",
    "GatedSAEConfig",
    "Graph",
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
    "ModelDiff",
    "SAEConfig",
    "SAEOutput",
    "SAETrainer",
    "SAETrainingArguments",
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
    "ablate",
    "attach",
    "attach_all",
    "cache_activations",
    "capture",
    "collect_features",
    "contrast",
    "diff",
    "evaluate_sae",
    "evaluate_together",
    "export_sae",
    "feature_activations",
    "feature_effects",
    "featurize",
    "find_max_activating_examples",
    "find_saes",
    "label_features",
    "list_saes",
    "load_saes",
    "logit_effects",
    "push_saes",
    "self_check",
    "splice",
    "steer",
    "steer_model",
    "steering_report",
    "trace",
    "untrained_tokens",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hfsae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])


# The command line is to answer before torch is loaded: its commands import what they need.
if "hfsae_cli" not in sys.modules:
    import_module("hfsae.architectures")
