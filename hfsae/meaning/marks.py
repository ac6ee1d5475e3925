"""Texts that say where something stands in them: `if x is <<None>>:`."""

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hfsae.analysis import TokenTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKED = re.compile(r"<<(.+?)>>", re.S)


class MarkedText(NamedTuple):
    """A text and what is marked in it.

    Attributes:
        text: Without the marks.
        spans: Beginnings and ends of what is marked, in characters.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


def read_marks(text: str) -> MarkedText:
    """Takes the marks out of a text.

    Raises:
        ValueError: If nothing is marked.

    Example:
        >>> read_marks("if x is <<None>>:")
        MarkedText(text='if x is None:', spans=((8, 12),))
    """
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    end = written = 0
    for found in _MARKED.finditer(text):
        pieces += [text[end : found.start()], found[1]]
        start = written + found.start() - end
        written = start + len(found[1])
        spans.append((start, written))
        end = found.end()
    if not spans:
        raise ValueError(
            f"nothing is marked in {text!r}: put << in front of what is meant and >> behind it, in each positive text."
        )
    return MarkedText("".join([*pieces, text[end:]]), tuple(spans))


def marked_tokens(marked: MarkedText, tokenizer: "PreTrainedTokenizerBase") -> Tensor:
    """Which tokens of a text are marked: bool (tokens,), special ones left out.

    These are the tokens that end in what is marked. Where none does, it is the one in which that ends.
    """
    ends = torch.tensor(_ends(marked.text, tokenizer))
    found = torch.zeros(len(ends), dtype=torch.bool)
    for start, stop in marked.spans:
        inside = (ends > start) & (ends <= stop)
        found |= inside if inside.any() else (ends >= stop) & ((ends >= stop).cumsum(0) == 1)
    return found


def _ends(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Where each token of a text ends, in characters."""
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=bool(tokenizer.is_fast))
    if tokenizer.is_fast:
        return [end for _, end in encoded["offset_mapping"]]  # type: ignore[misc]
    # The others do not say it, and the texts of their tokens make up the whole text.
    return list(accumulate(map(len, TokenTexts(tokenizer)(encoded["input_ids"]))))  # type: ignore[arg-type]


def parts_of_texts(
    positive: Sequence[MarkedText], n_negative: int, tokenizer: "PreTrainedTokenizerBase"
) -> list[Tensor]:
    """The parts that texts fall into: what is marked in each, the negative texts, and what is not marked in each.

    Args:
        positive: P texts.
        n_negative: N negative ones, each a part of its own.
        tokenizer: The tokenizer.

    Returns:
        For each of the P + N texts int64 (tokens,), the part of each token. Parts 0 to P − 1 are what is marked, the
        next N the negative texts, the last P the rest of the positive ones. One number alone stands for all tokens.
    """
    first_rest = len(positive) + n_negative
    inside = [marked_tokens(marked, tokenizer) for marked in positive]
    told = [torch.where(here, number, first_rest + number) for number, here in enumerate(inside)]
    return [*told, *(torch.tensor([len(positive) + number]) for number in range(n_negative))]
