"""What stands around a token: its window, and a number that is the same for equal contexts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae.analysis.document_sequences import DocumentSequences
from hfsae.analysis.feature_reader import Firings

# Fills windows where the piece has no token.
NO_TOKEN = -1

_MULTIPLIER = 0x5DEECE66D1A3F2B5  # odd, so that no information is lost
_MASK_32 = (1 << 32) - 1


def context_numbers(pieces: DocumentSequences, before: int) -> Tensor:
    """For every token a hash of it and the tokens up to `before` in front of it: int64 (B · T,).

    What follows a token has no influence on its features, so equal contexts are the same example twice.
    """
    ids = pieces.tokens.input_ids + 1
    number = torch.zeros_like(ids)
    for distance in range(min(before, ids.shape[1] - 1), -1, -1):
        shifted = torch.zeros_like(ids)
        shifted[:, distance:] = ids[:, : ids.shape[1] - distance]
        number = number * _MULTIPLIER + shifted  # wraps around
    return _mixed(number).flatten()


def random_numbers(contexts: Tensor, features: Tensor, seed: int) -> Tensor:
    """For each entry a number in [0, 1) that depends on its context, its feature and the seed alone: float64."""
    mixed = _mixed(contexts ^ _mixed(features * _MULTIPLIER + seed))
    return (mixed >> 32 & _MASK_32).double() / 2**32


def windows(pieces: DocumentSequences, firings: Firings, tokens: Tensor, features: Tensor, before: int, after: int):
    """The tokens around some tokens, and how strongly a feature fires on each of them.

    Args:
        pieces: The batch.
        firings: All entries of the batch, tokens in order.
        tokens: int64 (n,), row · T + column.
        features: int64 (n,), one for each.
        before: Tokens in front.
        after: Tokens behind.

    Returns:
        Token ids, int32 (n, before + 1 + after), `NO_TOKEN` where the piece has none, and activations, float32.
    """
    ids = pieces.tokens.input_ids
    there = torch.where(pieces.tokens.attention_mask.bool(), ids, NO_TOKEN).int().flatten()
    length = ids.shape[1]
    start = tokens - tokens % length
    column = (tokens - start)[:, None] + torch.arange(-before, after + 1)
    place = (start[:, None] + column.clamp(0, length - 1)).view(-1)
    window = there.index_select(0, place).view_as(column).masked_fill_((column < 0) | (column >= length), NO_TOKEN)

    # In a list sorted by feature and token, a feature's firings in a window stand side by side.
    numbers, order = firings.by_feature
    mine = features << 32
    first = torch.searchsorted(numbers, mine + torch.maximum(tokens - before, start))
    behind = torch.searchsorted(numbers, mine + torch.minimum(tokens + after, start + length - 1), right=True)
    counts = behind - first
    row = torch.repeat_interleave(counts)
    place = torch.arange(len(row)) + (first - (counts.cumsum(0) - counts)).index_select(0, row)
    entry = order.index_select(0, place)
    column = firings.tokens.index_select(0, entry) - (tokens - before).index_select(0, row)
    activations = torch.zeros(window.shape, dtype=torch.float32)
    activations.view(-1).scatter_(0, row * window.shape[1] + column, firings.values.index_select(0, entry))
    return window, activations


def strongest(firings: Firings, tokens: Tensor, size: int) -> Tensor:
    """The strongest features of some tokens, (n, size) int32, strongest first and −1 where there is none.

    Of equal values the one whose entry comes first.

    Args:
        firings: All entries of the batch, tokens in order.
        tokens: int64 (n,), row · T + column.
        size: How many features of each.
    """
    # Whole numbers are sorted faster than rows of floats. Those of positive floats' bits are ordered like the floats.
    weakness = torch.iinfo(torch.int32).max - firings.values.view(torch.int32)
    order = ((firings.tokens << 32) + weakness).sort(stable=True).indices
    first = torch.searchsorted(firings.tokens, tokens)
    counts = torch.searchsorted(firings.tokens, tokens, right=True) - first
    columns = torch.arange(size)
    place = torch.where(columns < counts[:, None], first[:, None] + columns, len(firings))
    features = F.pad(firings.features.int().index_select(0, order), (0, 1), value=-1)
    return features.index_select(0, place.view(-1)).view_as(place)


def _mixed(number: Tensor) -> Tensor:
    """Spreads every bit over the whole number (the finaliser of splitmix64; Steele et al. 2014)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        number = (number ^ (number >> shift & ((1 << (64 - shift)) - 1))) * factor
    return number ^ (number >> 31 & ((1 << 33) - 1))
