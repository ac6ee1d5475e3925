"""`SideBySide`: several language models that read the same tokens, as one whose places are those of all.

A place of one of them has that one's name in front: `tuned.resid_post.4`, `base.transformer.h.4.output`. So whatever
reads or writes at several places of one model does so in several models.
"""

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hfsae.hooks.inner import model_to_call
from hfsae.hooks.limits import context_length_of, refuse_without_ids
from hfsae.hooks.points import HookPoint, HookPointError


class PartStopped(BaseException):  # Not an Exception: no `except Exception` in a model's code may swallow it.
    """Ends the pass of one model, of which nothing more is wanted; the next one goes on."""


class SideBySide(PreTrainedModel):
    """Language models by name, called together: each reads the same `input_ids`, in the order of their names.

    Its config is the first one's, with the smallest vocabulary and the shortest context of all. A call returns what
    the first model returns.

    Args:
        models: Causal LMs by name, at least two; names are as in Python. They are held, not copied.

    Raises:
        ValueError: If there are fewer, or a name cannot be one.
        TypeError: If one is no Hugging Face language model, or reads no token ids.

    Example:
        >>> both = SideBySide({"base": gpt2, "tuned": my_gpt2})  # doctest: +SKIP
        >>> with capture(both, ["base.resid_post.4", "tuned.resid_post.4"]) as activations:  # doctest: +SKIP
        ...     activations.run(input_ids=input_ids)
    """

    def __init__(self, models: Mapping[str, Any]):
        nn.Module.__init__(self)  # that of PreTrainedModel sets up a model of one config
        if len(models) < 2:
            raise ValueError(f"models stand side by side from two on, got {', '.join(models) or 'none'}.")
        called = {name: model_to_call(model) for name, model in models.items()}
        configs: list[Any] = [model.config for model in called.values()]
        self.config = copy.deepcopy(configs[0])
        for name, model in called.items():
            if not name.isidentifier() or hasattr(self, name):
                raise ValueError(f"a model cannot be called {name!r}: take a name such as 'base' or 'tuned'.")
            refuse_without_ids(model)
            self.add_module(name, model)
        self._names = list(called)
        text: Any = self.config.get_text_config()
        text.vocab_size = min(config.get_text_config().vocab_size for config in configs)
        contexts = [context for model in called.values() if (context := context_length_of(model)) is not None]
        if contexts and hasattr(text, "max_position_embeddings"):
            text.max_position_embeddings = min(contexts)

    @property
    def models(self) -> dict[str, PreTrainedModel]:
        """The models by name."""
        return {name: self.get_submodule(name) for name in self._names}  # type: ignore[misc]

    def part_of(self, hook_point: HookPoint | str) -> str:
        """Whose place it is.

        Raises:
            HookPointError: If no name of a model stands in front.
        """
        name = str(hook_point).partition(".")[0]
        if name not in self._names:
            wanted = ", ".join(f"{part}.{hook_point}" for part in self._names)
            raise HookPointError(f"{str(hook_point)!r} does not say in which of the models; name it {wanted}")
        return name

    def own(self, hook_point: HookPoint) -> HookPoint:
        """The place as its own model calls it."""
        return replace(hook_point, path=hook_point.path.removeprefix(f"{self.part_of(hook_point)}."))

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        """Calls one model after the other.

        Args:
            input_ids: (batch, seq).
            attention_mask: (batch, seq); None where all tokens count.
            **kwargs: What every model takes, such as `use_cache`.

        Returns:
            What the first model returns; None where it was stopped early.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        given = {name: value for name, value in inputs.items() if value is not None}
        outputs = []
        for model in self.models.values():
            output = None
            with suppress(PartStopped):
                output = model(**given)
            outputs.append(output)
        return outputs[0]


def below(part: str, hook_point: HookPoint) -> HookPoint:
    """A place of one of the models as they call it side by side."""
    return replace(hook_point, path=f"{part}.{hook_point.path}")
