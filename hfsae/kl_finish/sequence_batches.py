"""Batches of so many tokens that count, in whole sequences: what must be read with its context."""

from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from hfsae.data import TokenBatch, TokenBlocks


class SequenceBatches:
    """An iterator over batches of whole sequences in which exactly `tokens` tokens count; saved and resumed anywhere.

    Neighbouring sequences are of one document, and a batch should come from many. So sequences are read in windows,
    each permuted by a generator seeded with `(seed, rank, window)`. A sequence of which some tokens are left over is
    read again in the next batch. There those count and no others, so no token is lost, and none counts twice.

    Args:
        blocks: The sequences; they belong to this iterator.
        tokens: Tokens that count in a batch.
        window_tokens: Tokens that count in a window, at least; 0 keeps the order of the text.
        seed: Seed of the permutations.
        rank: This process, which permutes in its own way.

    Example:
        >>> batches = SequenceBatches(blocks, tokens=4096, window_tokens=2**18)
        >>> int(next(batches).keep.sum())
        4096
    """

    def __init__(self, blocks: TokenBlocks, tokens: int, *, window_tokens: int = 0, seed: int = 0, rank: int = 0):
        self._blocks = blocks
        self._tokens = tokens
        self._window_tokens = window_tokens
        self._seed = seed, rank
        self._number = 0
        self._place = blocks.state_dict()
        self._window: TokenBatch | None = None
        self._used = 0

    def __iter__(self) -> "SequenceBatches":
        return self

    def __next__(self) -> TokenBatch:
        """Sequences in which `tokens` tokens count, padded on the right."""
        pieces, wanted = [], self._tokens
        while wanted:
            if self._window is None:
                self._window = self._read_window()
            size = int(self._window.keep.sum())
            stop = min(self._used + wanted, size)
            pieces.append(_between(self._window, self._used, stop))
            wanted -= stop - self._used
            self._used = stop
            if stop == size:
                self._number, self._place, self._window, self._used = (
                    self._number + 1,
                    self._blocks.state_dict(),
                    None,
                    0,
                )
        return _joined(pieces)

    def _read_window(self) -> TokenBatch:
        """The sequences of the window that begins where the blocks stand, in its order."""
        read, counting = [], 0
        while not read or counting < self._window_tokens:
            read.append(next(self._blocks))
            counting += int(read[-1].keep.sum())
        window = _joined(read)
        if not self._window_tokens:
            return window
        mixed = np.random.SeedSequence((*self._seed, self._number)).generate_state(1, np.uint64)
        order = torch.randperm(len(window.keep), generator=torch.Generator().manual_seed(int(mixed[0])))
        return TokenBatch(*(part[order] for part in window))

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, in values that JSON can hold."""
        return {"window": self._number, "blocks": self._place, "used": self._used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was called; the window there is read again with the next batch asked for."""
        self._blocks.load_state_dict(state["blocks"])
        self._number, self._place, self._used = state["window"], state["blocks"], state["used"]
        self._window = None


def _between(batch: TokenBatch, start: int, stop: int) -> TokenBatch:
    """Counting tokens alone, the sequences in which tokens `start` to `stop` lie; no others count in them."""
    number = batch.keep.flatten().cumsum(0).view_as(batch.keep)
    keep = batch.keep & (number > start) & (number <= stop)
    return TokenBatch(*(part[keep.any(1)] for part in batch._replace(keep=keep)))


def _joined(batches: list[TokenBatch]) -> TokenBatch:
    """One batch of the sequences of several, as wide as the longest of them."""
    longest = max(int(batch.attention_mask.sum(1).max()) for batch in batches)
    parts = zip(*(batch for batch in batches), strict=True)
    return TokenBatch(*(torch.cat([_as_wide(part, longest) for part in side]) for side in parts))


def _as_wide(part: torch.Tensor, width: int) -> torch.Tensor:
    return pad(part[:, :width], (0, max(0, width - part.shape[1])))
