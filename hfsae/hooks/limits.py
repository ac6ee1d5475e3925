"""What a language model can read: token ids at all, how many at once, and which."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hfsae.hooks.inner import inner_model


def takes_token_ids(model: nn.Module) -> bool:
    """Whether a model reads token ids, and not images or sound."""
    parameters = _arguments(model)
    # A wrapper takes whatever there is and hands it on.
    named = [p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return "input_ids" in parameters or not named


def _arguments(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """What the model inside of whatever wrappers is called with."""
    try:
        model = inner_model(model)
    except (TypeError, ValueError):  # no model of transformers, or none that can be reached
        pass
    return inspect.signature(model.forward).parameters


def refuse_without_ids(model: nn.Module) -> None:
    """Raises where a model reads no token ids: activations then come from the user.

    Raises:
        TypeError: Says what the model reads instead.
    """
    if not takes_token_ids(model):
        reads = getattr(model, "main_input_name", None) or next(iter(_arguments(model)))
        raise TypeError(
            f"{type(model).__name__} reads {reads} and no token ids, so hfsae cannot run it by itself: run it "
            "yourself and hand over what it computes: SAETrainer(activations=...), see examples/own_activations.py."
        )


def context_length_of(model: nn.Module) -> int | None:
    """The most tokens that a model can read at once; None where there is no such limit, or none is known.

    RoBERTa's kin count positions from after that of padding, so they can read fewer tokens than they have positions.

    Args:
        model: A Hugging Face language model.
    """
    config: Any = model.config
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is None or longest < 1:  # XLNet says -1
        return None
    named = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    positions = next((module for module in named if isinstance(module, nn.Embedding)), None)
    if positions is None or positions.padding_idx is None:
        return longest
    return min(longest, positions.num_embeddings - positions.padding_idx - 1)


def refuse_too_long(tokens: int, model: nn.Module, new_tokens: int = 0) -> None:
    """Raises where a prompt and its continuation are longer than a model's context.

    Args:
        tokens: Of the prompt.
        model: The language model that shall read them.
        new_tokens: Of the continuation, whose last token is read no more.

    Raises:
        ValueError: Names the lengths.
    """
    longest = context_length_of(model)
    if longest is None:
        return
    if tokens > longest:
        raise ValueError(f"the prompt has {tokens} tokens, but the model reads {longest}: shorten it.")
    if tokens + new_tokens - 1 > longest:
        raise ValueError(
            f"a prompt of {tokens} tokens and {new_tokens} new ones are more than the {longest} that the model reads: "
            f"ask for at most {longest - tokens + 1}, or shorten the prompt."
        )


def refuse_unknown_ids(ids: torch.Tensor, model: nn.Module, tokenizer: Any = None) -> None:
    """Raises where a token id is none of the model's.

    Args:
        ids: Token ids of any shape.
        model: The language model that shall read them.
        tokenizer: What made them, to name the token.

    Raises:
        ValueError: Names the token and the model's vocabulary.
    """
    config: Any = model.config
    vocabulary = config.get_text_config().vocab_size
    largest = int(ids.max()) if ids.numel() else -1
    if ids.numel() and (smallest := int(ids.min())) < 0:
        raise ValueError(f"token id {smallest}: ids count from 0. Take out what fills up rows, such as -100, first.")
    if largest >= vocabulary:
        called = None if tokenizer is None else tokenizer.convert_ids_to_tokens(largest)
        token = "" if called is None else f" ({called!r})"
        raise ValueError(
            f"token id {largest}{token}, but the language model knows {vocabulary} tokens: use the tokenizer that "
            "belongs to it, or enlarge the model with resize_token_embeddings."
        )
