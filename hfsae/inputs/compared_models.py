"""Several language models of one run, side by side: named, held against each other, and only then loaded."""

from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfsae.arguments.local_paths import parts_of
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.hooks import SideBySide
from hfsae.language_model import Origin, find

# How many tokens an error names.
_SHOWN = 3
# Equal vocabularies may still cut text in different ways.
_PROBE = "The quick brown fox isn't here: 3.14 × 2 = 6.28\n\n\tdef f(x):\n  return 'naïve café' 日本 <b>!</b>"


def names_of_models(number: int) -> list[str]:
    """What the sources of so many models are called: `base` and `tuned`, of more `base`, `tuned_1`, `tuned_2`, ..."""
    return ["base", "tuned"] if number == 2 else ["base", *(f"tuned_{i}" for i in range(1, number))]


def compares(args: SAETrainingArguments, model: Any) -> bool:
    """Whether a run reads several models."""
    return args.compare_model_name_or_path is not None or isinstance(model, Mapping | SideBySide)


def models_of(args: SAETrainingArguments, model: Any, first: Callable[[], Origin]) -> dict[str, Any]:
    """The models of a run by the names of their sources: an object, or where it comes from.

    Args:
        args: The run's arguments.
        model: What was given in their place: models or their names by source, a `SideBySide`, one model, or nothing.
        first: Where the model comes from that the arguments name.

    Raises:
        ValueError: If there are not several, or both objects by source and `compare_model_name_or_path` are given.
    """
    others = parts_of(args.compare_model_name_or_path or "")
    if isinstance(model, SideBySide):
        model = model.models
    if isinstance(model, Mapping):
        if others:
            raise ValueError("models are given by source: leave compare_model_name_or_path out.")
        return {name: find(one) if isinstance(one, str) else one for name, one in model.items()}
    if not others:
        raise ValueError("compare_model_name_or_path names no model: give a name, or leave it out.")
    found = [find(name, revision, args.model_kwargs) for name, revision in others]
    return dict(zip(names_of_models(1 + len(found)), [first() if model is None else model, *found], strict=True))


def refuse_unequal_tokenizers(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> None:
    """Raises unless all tokenizers make the same token ids of the same text.

    Held against each other are the vocabularies, the special tokens, and how a text is cut that has a bit of
    everything. What a tokenizer is called does not matter, nor its chat template.

    Args:
        tokenizers: By source.

    Raises:
        ValueError: Says what is unequal.
    """
    (first, one), *rest = tokenizers.items()
    for name, other in rest:
        if (why := _difference(one, other)) is not None:
            raise ValueError(
                f"the tokenizers of {first} and {name} are not equal: {why}. A crosscoder of several models reads the "
                "same token ids in all of them: compare models that share a tokenizer."
            )


def _difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    vocabulary, others = one.get_vocab(), other.get_vocab()
    if vocabulary != others:
        alone = sorted(token for token in vocabulary.keys() ^ others.keys())
        moved = sorted(token for token in vocabulary.keys() & others.keys() if vocabulary[token] != others[token])
        shown = ", ".join(map(repr, (alone or moved)[:_SHOWN]))
        what = f"one of them alone has {shown}" if alone else f"{shown} have other ids"
        return f"their vocabularies hold {len(vocabulary):,} and {len(others):,} tokens, and {what}"
    for role in ("bos_token_id", "eos_token_id"):
        if (mine := getattr(one, role, None)) != (theirs := getattr(other, role, None)):
            return f"their {role} is {mine} and {theirs}"
    padding = {getattr(tokenizer, "pad_token_id", None) for tokenizer in (one, other)}
    if set(one.all_special_ids) - padding != set(other.all_special_ids) - padding:
        return f"their special tokens are {sorted(one.all_special_ids)} and {sorted(other.all_special_ids)}"
    if one(_PROBE)["input_ids"] != other(_PROBE)["input_ids"]:
        return "they cut the same text in different ways"
    return None
