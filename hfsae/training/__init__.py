"""Training SAEs on the activations of a language model: one loop, on Accelerate, for one SAE or many.

    trainer = SAETrainer(args=SAETrainingArguments(model_name_or_path="openai-community/gpt2", ...))
    trainer.train()

`trainer` has the loop, `learner` one SAE in it. Arguments (`hfsae.arguments`), what is read (`hfsae.inputs`), several
processes (`hfsae.parallel`), forecasts (`hfsae.estimate`) and sweeps (`hfsae.sweeps`) have packages of their own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfsae.arguments.training_arguments import SAETrainingArguments
    from hfsae.inputs.activation_cache import cache_activations
    from hfsae.training.output import TrainOutput
    from hfsae.training.trainer import SAETrainer

__all__ = ["SAETrainer", "SAETrainingArguments", "TrainOutput", "cache_activations"]

_LAZY = {
    "SAETrainer": "hfsae.training.trainer",
    "SAETrainingArguments": "hfsae.arguments.training_arguments",
    "TrainOutput": "hfsae.training.output",
    "cache_activations": "hfsae.inputs.activation_cache",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hfsae.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
