"""Training SAEs on the activations of a language model: one loop, on Accelerate, for one SAE or many.

    trainer = SAETrainer(args=SAETrainingArguments(model_name_or_path="openai-community/gpt2", ...))
    trainer.train()

`trainer` is the loop, `run` what it is made of, `learner` one SAE in it, `reading` and `feed` what it reads, `caching`
that on a disk, `rehearsal` tries the evaluation before it begins, `finish` is its end.
"""

from hfsae.training.arguments import SAETrainingArguments
from hfsae.training.caching import cache_activations
from hfsae.training.trainer import SAETrainer, TrainOutput

__all__ = ["SAETrainer", "SAETrainingArguments", "TrainOutput", "cache_activations"]
