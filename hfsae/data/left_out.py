"""Which tokens of a text count: the one home of the rule by which training, metrics and splices leave tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# By these names the configs of multimodal models tell which ids hold the place of what is no text, and which stand
# around it. What speech models call `audio_bos` may be of another vocabulary.
_KINDS = ("image", "video", "audio", "vision")
_PLACEHOLDERS = tuple(
    f"{name}_token_{word}"
    for name in (*(kind + part for kind in _KINDS for part in ("", "_start", "_end")), "boi", "eoi", "boa", "eoa")
    for word in ("id", "index")
)
# So many comparisons take less time than one look-up, in the small calls of `generate`.
_FEW = 8


@dataclass(frozen=True)
class LeftOut:
    """Tokens that an SAE neither learns from nor is measured on, beside padding.

    Attributes:
        special_ids: Ids of special tokens.
        positions: Positions in a block of text, from 0.
    """

    special_ids: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()

    def counted(self, tokens: Tensor, ids: Tensor | None, positions: Tensor) -> Tensor:
        """Which tokens count, (batch, seq) bool.

        Args:
            tokens: (batch, seq) bool, the tokens that would count: no padding.
            ids: (batch, seq) their ids; None where they are not known, so that no special token can be told.
            positions: Where they stand in the text, in a shape that broadcasts against `tokens`.
        """
        tokens = _without(tokens, positions, self.positions)
        return tokens if ids is None else _without(tokens, ids, self.special_ids)

    def counted_in_blocks(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """The same where the first column is the first position."""
        return self.counted(tokens, ids, torch.arange(ids.shape[-1], device=ids.device))


def placeholder_ids(config: Any) -> list[int]:
    """The ids in whose place a multimodal model reads images, videos or sound, and those of the marks around them.

    An SAE learned from text. What stands there is no word, and no tokenizer of the text part needs to know it.

    Args:
        config: The language model's; of a model of text alone there are none.
    """
    ids = {getattr(config, name, None) for name in _PLACEHOLDERS}
    return sorted(number for number in ids if type(number) is int and number >= 0)


def in_words(exclude_special_tokens: bool, exclude_positions: Sequence[int]) -> list[str]:
    """What a config leaves out: `["special tokens", "position 0 of every block"]`.

    Args:
        exclude_special_tokens: Of the config.
        exclude_positions: Likewise.
    """
    words = ["special tokens"] if exclude_special_tokens else []
    if exclude_positions:
        which = "position" if len(exclude_positions) == 1 else "positions"
        words.append(f"{which} {', '.join(map(str, exclude_positions))} of every block")
    return words


def _without(tokens: Tensor, numbers: Tensor, left_out: Sequence[int]) -> Tensor:
    """A mask without the tokens that have one of some numbers."""
    if len(left_out) > _FEW:
        return tokens & ~torch.isin(numbers, torch.tensor(left_out, device=numbers.device))
    for number in left_out:
        tokens = tokens & (numbers != number)
    return tokens
