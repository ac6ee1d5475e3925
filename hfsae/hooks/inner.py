"""The Hugging Face model inside what others wrap around it.

Wrappers pass calls on in ways of their own: `PeftModel.generate` and the `generate` of a compiled model never run the
wrapper's `forward`. What really runs, whatever is called, is the `PreTrainedModel` inside.
"""

import re
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from torch import nn
from transformers import PreTrainedModel

_INSIDE = ("module", "_orig_mod", "original_model", "_module", "base_model", "model")
"""Where wrappers keep what they wrap: DDP, FSDP, DeepSpeed and averaged models; compiled models; the bridge of
TransformerLens; the language model of nnsight; PEFT's models; PEFT's tuners."""


def inner_model(model: Any) -> PreTrainedModel:
    """Finds the Hugging Face model that really runs when a wrapper is called.

    Args:
        model: A `PreTrainedModel`, which is returned as it is, or a wrapper around one, or around another wrapper.
            Wrappers are a `PeftModel`, `DistributedDataParallel`, FSDP, what Accelerate prepared, what `torch.compile`
            returned, TransformerLens' `TransformerBridge`, nnsight's `LanguageModel`.

    Returns:
        The model inside, not a copy.

    Raises:
        ValueError: For `DataParallel`, which runs copies, and for a model of nnsight that is not loaded yet.
        TypeError: If there is no `PreTrainedModel` inside.

    Example:
        >>> inner_model(torch.compile(gpt2)) is gpt2
        True
    """
    return next(layer for layer in _layers(model) if isinstance(layer, PreTrainedModel))


def model_to_call(model: Any) -> PreTrainedModel:
    """What has to be called so that a wrapped language model computes what it was trained to.

    Args:
        model: As `inner_model` takes it.

    Returns:
        The model inside; of a `PeftModel` with a learnt prompt or prefix that one, as only it enters what was learnt.

    Raises:
        ValueError, TypeError: As `inner_model`.
    """
    return next(layer for layer in _layers(model) if isinstance(layer, PreTrainedModel) or learns_a_prompt(layer))


def learns_a_prompt(model: Any) -> bool:
    """Whether a model is a `PeftModel` that enters virtual tokens or a prefix before the text."""
    own = getattr(model, "active_peft_config", None) if "base_model" in getattr(model, "_modules", {}) else None
    return getattr(own, "is_prompt_learning", False)


def _layers(model: Any) -> Iterator[Any]:
    """What is wrapped in what, outermost first, down to the Hugging Face model; an error if there is none."""
    seen: list[Any] = []
    waiting = [model]
    while waiting:  # breadth first: an Envoy of nnsight also has the parts of its model under their names
        layer = waiting.pop(0)
        if isinstance(layer, nn.DataParallel):
            raise ValueError(
                "DataParallel runs copies of the language model, which hooks do not reach: pass the model inside, "
                "model.module."
            )
        if not isinstance(layer, PreTrainedModel) and getattr(layer, "dispatched", True) is False:
            raise ValueError(
                f"this {type(layer).__name__} has not loaded its weights yet, and will put another model in the "
                "place of this one when it does: call its dispatch() first."
            )
        if learns_a_prompt(layer):
            _warn_of_lost_prompts()
        yield layer
        if not any(layer is other for other in seen):
            seen.append(layer)
            waiting += [inside for name in _INSIDE if (inside := _kept(layer, name)) is not None]
    raise TypeError(
        f"expected a Hugging Face language model (a transformers.PreTrainedModel) or a wrapper around one, got "
        f"{_called(model)}: there is none inside."
    )


def _warn_of_lost_prompts() -> None:
    """Tells of releases whose `generate` loses what was learnt: PEFT looks for the cache under its old name."""
    peft, transformers = version("peft"), version("transformers")
    if _numbers(transformers) >= (5, 24) and _numbers(peft) <= (0, 21, 2):
        warnings.warn(
            f"peft {peft} does not know the cache of transformers {transformers}: `generate` of a PeftModel with a "
            "learnt prompt enters it again at every token, and leaves a learnt prefix out. Calls of the model itself "
            "are right. Use transformers<5.24, or a newer peft.",
            stacklevel=4,
        )


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release)[:3])


def _kept(wrapper: Any, name: str) -> Any:
    """What an object itself keeps under a name; properties and what it looks up elsewhere are not asked."""
    own = getattr(wrapper, "__dict__", {})
    return own.get(name, own.get("_modules", {}).get(name))


def _called(model: Any) -> str:
    return f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
