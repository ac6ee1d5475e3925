"""The text that an evaluation reads: what the caller gave, as batches of token blocks, cut to a number of tokens."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.configuration import SAEConfig
from hfsae.data import TextSource, TokenBatch, TokenBlocks
from hfsae.data.encoding import dataset_of_list, marks_assistant
from hfsae.data.left_out import placeholder_ids
from hfsae.hooks import HookPoint
from hfsae.hooks.limits import context_length_of, refuse_unknown_ids, refuse_without_ids
from hfsae.hooks.tokens import of_tokens

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Text: TypeAlias = "TokenBlocks | Iterable[TokenBatch] | Dataset | IterableDataset | Sequence[str]"

# Tokens in a block of text where the config does not say on how many the SAE was trained.
_DEFAULT_CONTEXT = 128

# What decides how text becomes tokens, and which of them count.
_POLICY = ("context_length", "prepend_bos", "exclude_special_tokens", "exclude_positions")


def read_batches(
    data: Text,
    tokenizer: "PreTrainedTokenizerBase | None",
    model: PreTrainedModel,
    configs: Mapping[str, SAEConfig],
    *,
    max_tokens: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> list[TokenBatch]:
    """Batches that hold at most `max_tokens` tokens that count, at least one sequence.

    A `TokenBlocks` is left where it was found: what it gave here it will give again.

    Args:
        data: As `evaluate_saes` takes it.
        tokenizer: Needed for text.
        model: The language model that will read the batches.
        configs: Of the SAEs that will be measured, by name.
        max_tokens: Counts tokens that are not left out.
        batch_size: Sequences a batch where text is cut here.
        rank: This process; text that is cut here is shared among `world_size` of them.
        world_size: The number of processes.

    Raises:
        ValueError: If there is no token that counts, or the SAEs want the text cut in different ways. Likewise if
            tokens count that an SAE leaves out, or the model cannot read the tokens. Likewise if a batch is not as
            `TokenBatch` says, such as padded on the left.
        TypeError: If `data` is of another type, or text comes without a tokenizer.
    """
    refuse_no_tokens(max_tokens)
    if isinstance(data, TokenBlocks):
        place = data.state_dict()
        try:
            batches = list(take(data, max_tokens))
        finally:
            data.load_state_dict(place)
    else:
        batches = list(take(_batches(data, tokenizer, model, configs, batch_size, rank, world_size), max_tokens))
    if not count(batches):
        raise ValueError("the data hold no token that counts: it is empty, or every token is left out.")
    _check_model(batches, model)
    _check_policy(batches, configs)
    return batches


def refuse_no_tokens(max_tokens: int) -> None:
    """Refuses a number of tokens to read that leaves nothing to read.

    Raises:
        ValueError: Says which number that is.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be positive, got {max_tokens}.")


def take(batches: Iterable[TokenBatch], max_tokens: int) -> Iterator[TokenBatch]:
    """The first sequences, as long as no more than `max_tokens` of their tokens count; at least one sequence."""
    left = max_tokens
    for batch in batches:
        running = batch.keep.sum(1).cumsum(0)
        fitting = int((running <= left).sum())
        if left == max_tokens:
            fitting = max(fitting, 1)
        if fitting:
            yield rows(batch, slice(0, fitting))
        if fitting < len(batch.keep):
            return
        left -= int(running[-1])
        if left <= 0:
            return


def split(batches: Sequence[TokenBatch], tokens: int) -> tuple[list[TokenBatch], list[TokenBatch]]:
    """The first sequences that hold `tokens` tokens that count, and the rest."""
    first = list(take(batches, tokens))
    whole, taken = len(first) - 1, len(first[-1].keep)
    rest = [rows(batches[whole], slice(taken, None)), *batches[whole + 1 :]]
    return first, [batch for batch in rest if len(batch.keep)]


def rows(batch: TokenBatch, chosen: slice) -> TokenBatch:
    """Some sequences of a batch."""
    return TokenBatch(*(part[chosen] for part in batch))


def counted(activation: Tensor, batch: TokenBatch, place: HookPoint) -> Tensor:
    """The rows (N, d) of the tokens that count."""
    return of_tokens(activation, batch.input_ids.shape, place)[batch.keep.to(activation.device)]


def tokens_digest(batches: Iterable[TokenBatch]) -> str:
    """SHA-256 of the sequences of a text and of what counts in them, however they lie in batches and are padded."""
    digest = hashlib.sha256()
    for batch in batches:
        for ids, mask, keep in zip(*(part.cpu() for part in batch), strict=True):
            there = mask.bool()
            digest.update(int(there.sum()).to_bytes(8, "big"))
            digest.update(ids[there].to(torch.int64).numpy().tobytes() + keep[there].to(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def count(batches: Iterable[TokenBatch]) -> int:
    """Tokens that count."""
    return sum(int(batch.keep.sum()) for batch in batches)


def say_shortfall(batches: Sequence[TokenBatch], wanted: int, purpose: str) -> None:
    """Warns where a text has ended before as many tokens as were wanted.

    Args:
        batches: What was taken of it.
        wanted: Tokens that count, at most.
        purpose: What they are for.
    """
    longest = max((batch.input_ids.shape[1] for batch in batches), default=0)
    # What is taken ends with a whole sequence, so it may lack as much as the next one would have had.
    if wanted - (found := count(batches)) >= longest:
        logger.warning("%s of the %s tokens for %s could be had: the text ends", f"{found:,}", f"{wanted:,}", purpose)


def _batches(
    data: Any,
    tokenizer: "PreTrainedTokenizerBase | None",
    model: PreTrainedModel,
    configs: Mapping[str, SAEConfig],
    batch_size: int,
    rank: int,
    world_size: int,
) -> Iterable[TokenBatch]:
    from datasets import Dataset, IterableDataset

    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable | torch.Tensor):
        raise TypeError(f"data is a {type(data).__name__}; expected texts in a list, a dataset or TokenBlocks.")
    if isinstance(data, list | tuple) and data and isinstance(data[0], str):
        data = dataset_of_list(data)
    if not isinstance(data, Dataset | IterableDataset | torch.Tensor):
        return (_batch(item) for item in data)
    if tokenizer is None:
        raise TypeError("a tokenizer is needed to make tokens of text: pass tokenizer=sae.load_tokenizer().")
    policy = _shared_policy(configs, tokenizer)
    longest = context_length_of(model) or _DEFAULT_CONTEXT
    return TokenBlocks(
        data,
        tokenizer,
        context_length=policy["context_length"] or min(_DEFAULT_CONTEXT, longest),
        batch_size=batch_size,
        prepend_bos=policy["prepend_bos"],
        exclude_special_tokens=policy["exclude_special_tokens"],
        further_ids=placeholder_ids(model.config),
        exclude_positions=policy["exclude_positions"],
        chat=policy["chat"],
        assistant_only=policy["assistant_only"],
        rank=rank,
        world_size=world_size,
        repeat=False,
    )


def reading_of(config: SAEConfig, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
    """How an SAE wants conversations read, as `TokenBlocks` takes it: as in its training where it had any.

    Args:
        config: The SAE's config.
        tokenizer: Its tokenizer. An SAE that knows no conversations reads what the assistant says, where the chat
            template marks that.
    """
    arguments = (config.training or {}).get("arguments") or {}
    trained = TextSource.of_arguments(arguments)
    assistant_only = trained.assistant_only
    if not trained.chat and "assistant_only" not in arguments:
        assistant_only = tokenizer is not None and marks_assistant(tokenizer)
    return {"chat": None if trained.chat else False, "assistant_only": assistant_only}


def _batch(item: Any) -> TokenBatch:
    if not isinstance(item, tuple) or len(item) != len(TokenBatch._fields):
        raise TypeError(
            f"data gives {type(item).__name__} objects; expected TokenBatch(input_ids, attention_mask, keep), or "
            "texts (a list of strings, a datasets.Dataset) with a tokenizer."
        )
    batch = TokenBatch(*item)
    _refuse_unfit(batch)
    return batch


def _refuse_unfit(batch: TokenBatch) -> None:
    """Refuses a batch that is not as `TokenBatch` says: it would be read as another text, without an error.

    Raises:
        ValueError: Says what is wrong.
    """
    ids, mask, keep = batch
    shapes = [tuple(part.shape) for part in batch]
    if len(shapes[0]) != 2 or len(set(shapes)) > 1:
        told = ", ".join(map(str, shapes))
        raise ValueError(f"a batch has parts of the shapes {told}: expected one shape (sequences, tokens) of all.")
    if ids.is_floating_point() or keep.dtype != torch.bool:
        raise ValueError(f"a batch has ids in {ids.dtype} and keep in {keep.dtype}: expected int64 and bool.")
    real = mask.bool()
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise ValueError(
            "a batch has padding before tokens, which gives them other positions: pad sequences on the right "
            "(tokenizer.padding_side = 'right')."
        )
    if bool((keep & ~real).any()):
        raise ValueError("a batch counts tokens (keep) that are padding (attention_mask 0): count none of those.")


def _shared_policy(configs: Mapping[str, SAEConfig], tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """How all the SAEs want their text."""
    policies = {
        name: {field: getattr(config, field) for field in _POLICY} | reading_of(config, tokenizer)
        for name, config in configs.items()
    }
    first, policy = next(iter(policies.items()))
    for name, other in policies.items():
        for field in policy:
            if other[field] != policy[field]:
                raise ValueError(
                    f"{field} is {policy[field]!r} for {first} and {other[field]!r} for {name}: text cannot be cut "
                    "for both. Evaluate them apart, or pass TokenBlocks cut as you want it."
                )
    return policy


def _check_model(batches: Sequence[TokenBatch], model: PreTrainedModel) -> None:
    refuse_without_ids(model)
    for batch in batches:
        refuse_unknown_ids(batch.input_ids, model)
    longest = max(batch.input_ids.shape[1] for batch in batches)
    context = context_length_of(model)
    if context is not None and longest > context:
        raise ValueError(
            f"blocks of {longest} tokens, but the language model's context is {context}: cut shorter ones."
        )


def _check_policy(batches: Sequence[TokenBatch], configs: Mapping[str, SAEConfig]) -> None:
    for name, config in configs.items():
        for position in config.exclude_positions:
            if any(position < batch.keep.shape[1] and batch.keep[:, position].any() for batch in batches):
                called = f"SAE {name}" if name else "SAE"
                raise ValueError(
                    f"the data count tokens at position {position}, which the {called} leaves out "
                    f"(exclude_positions={config.exclude_positions}), so its numbers would not be its own. Cut the "
                    "text with TokenBlocks(exclude_positions=...) alike, or pass texts and the tokenizer."
                )
