"""Training SAEs on the activations of a language model: one loop, on Accelerate, for one SAE or many.

    trainer = SAETrainer(args=SAETrainingArguments(model_name_or_path="openai-community/gpt2", ...))
    trainer.train()

`trainer` is the loop, `run` what it is made of, `learner` one SAE in it, `reading` and `feed` what it reads, `caching`
that on a disk, `rehearsal` tries the evaluation before it begins, `finish` is its end. `arguments` is all that the
command line needs for its help, and comes without the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfsae.training.arguments import SAETrainingArguments
    from hfsae.training.caching import cache_activations
    from hfsae.training.trainer import SAETrainer, TrainOutput

__all__ = ["SAETrainer", "SAETrainingArguments", "TrainOutput", "cache_activations"]

_LAZY = {
    "SAETrainer": "hfsae.training.trainer",
    "SAETrainingArguments": "hfsae.training.arguments",
    "TrainOutput": "hfsae.training.trainer",
    "cache_activations": "hfsae.training.caching",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'hfsae.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
