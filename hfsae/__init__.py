"""hfsae: train, measure, share and use sparse autoencoders on Hugging Face language models.

Importing registers the configs and models with `AutoConfig` / `AutoModel`; training, evaluation and hooks are loaded
when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hfsae.architectures import (
    BatchTopKSAE,
    BatchTopKSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    MatryoshkaSAE,
    MatryoshkaSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from hfsae.configuration import SAEConfig
from hfsae.modeling import SAE
from hfsae.outputs import SAEOutput

if TYPE_CHECKING:
    from hfsae.evaluation import evaluate_sae
    from hfsae.hooks import capture, splice
    from hfsae.training import SAETrainer, SAETrainingArguments

__version__ = "0.1.0"

_LAZY = {
    "SAETrainer": "hfsae.training",
    "SAETrainingArguments": "hfsae.training",
    "capture": "hfsae.hooks",
    "evaluate_sae": "hfsae.evaluation",
    "splice": "hfsae.hooks",
}

__all__ = [
    "SAE",
    "BatchTopKSAE",
    "BatchTopKSAEConfig",
    "GatedSAE",
    "GatedSAEConfig",
    "JumpReLUSAE",
    "JumpReLUSAEConfig",
    "MatryoshkaSAE",
    "MatryoshkaSAEConfig",
    "SAEConfig",
    "SAEOutput",
    "SAETrainer",
    "SAETrainingArguments",
    "StandardSAE",
    "StandardSAEConfig",
    "TopKSAE",
    "TopKSAEConfig",
    "capture",
    "evaluate_sae",
    "splice",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hfsae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
