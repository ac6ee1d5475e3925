"""Activations in random order: windows of rows, each filled, shuffled and given out whole."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from hfsae.data.activation_sources import RowSource

_DEFAULT_WINDOW_TOKENS = 2**18
# A source that gives this many chunks without a row (every token left out) will not give one.
_MOST_EMPTY_CHUNKS = 1000


def default_window_tokens(total_tokens: int, batch_tokens: int) -> int:
    """The size of a window where nobody gave one: 2¹⁸ rows, at most a tenth of the run, at least a batch.

    Args:
        total_tokens: The rows that the whole run trains on.
        batch_tokens: The rows in a batch.

    Returns:
        A multiple of `batch_tokens`.

    Example:
        >>> default_window_tokens(total_tokens=1_000_000, batch_tokens=4096)
        98304
    """
    return _whole_batches(min(_DEFAULT_WINDOW_TOKENS, total_tokens // 10), batch_tokens)


def _whole_batches(tokens: int, batch_tokens: int) -> int:
    return max(1, tokens // batch_tokens) * batch_tokens


class ActivationStream:
    """An iterator over batches of shuffled activations that can be saved and resumed at any batch.

    Neighbouring tokens have similar activations, so a batch should come from many texts. The stream fills a window
    with the rows that come next, and permutes them by a generator seeded with `(seed, rank, window)`. It gives all of
    them out, batch by batch, before it fills the next one. A window is a function of the seed and of the place in the
    text alone. So a resumed stream builds one window again and goes on with equal batches, bit for bit.

    Memory: one buffer of `window_tokens` × d numbers of `dtype` for each hook point, plus the rows of one chunk of the
    source. For 2¹⁸ rows of d = 768 in bfloat16 the buffer has 403 MB.

    Args:
        source: Where rows come from; the stream takes it over.
        batch_tokens: Rows in a batch.
        window_tokens: Rows in a window, rounded down to whole batches and at least one.
        total_batches: How many batches there will be; no row is read for others. None: as many as the source gives.
        seed: The seed of the permutations, 0 or more.
        rank: This process, which shuffles in its own way.
        dtype: What the window holds.
        batch_dtype: What the batches are given out as.
        shuffle: False gives the rows in the source's order.
        device: Where the window lies and the batches come out.

    Attributes:
        window_tokens: Rows in a window.

    Raises:
        ValueError: If a size or the seed is out of range.
        MemoryError: If the window does not fit into the device's free memory. Raised when the stream is made.

    Example:
        >>> stream = ActivationStream(source, batch_tokens=4096, window_tokens=2**18, seed=0)
        >>> next(stream)["resid_post.8"].shape
        torch.Size([4096, 768])
    """

    def __init__(
        self,
        source: RowSource,
        *,
        batch_tokens: int,
        window_tokens: int,
        total_batches: int | None = None,
        seed: int = 0,
        rank: int = 0,
        dtype: torch.dtype = torch.bfloat16,
        batch_dtype: torch.dtype = torch.float32,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_tokens < 1 or seed < 0:
            raise ValueError(f"batch_tokens {batch_tokens} and seed {seed}: expected at least 1 and 0")
        self._total_rows = math.inf if total_batches is None else total_batches * batch_tokens
        self.window_tokens = _whole_batches(int(min(window_tokens, self._total_rows)), batch_tokens)
        self._source = source
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._rank = rank
        self._batch_dtype = batch_dtype
        self._shuffle = shuffle
        self._device = torch.device(device)
        _check_memory(self.window_tokens, source.widths, dtype, self._device)
        self._buffers = {
            name: torch.empty(self.window_tokens, width, dtype=dtype, device=self._device)
            for name, width in source.widths.items()
        }
        self._rows = ChunkRows(source)
        self._begin_window(0, self._rows.state_dict())

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        self._leave_spent_window()
        if self._order is None:
            self._order = self._permutation(self._fill())
        start = self._batch * self._batch_tokens
        if start == len(self._order):
            raise StopIteration
        rows = self._order[start : start + self._batch_tokens]
        self._batch += 1
        # Only the batch's rows are gathered and cast: the window is never copied as a whole.
        return {name: buffer.index_select(0, rows).to(self._batch_dtype) for name, buffer in self._buffers.items()}

    def _begin_window(self, window: int, first_row: dict[str, Any]) -> None:
        self._window = window
        self._batch = 0
        self._first_row = first_row
        self._order: Tensor | None = None

    def _leave_spent_window(self) -> None:
        if self._order is not None and len(self._order) and self._batch * self._batch_tokens == len(self._order):
            self._begin_window(self._window + 1, self._rows.state_dict())

    def _fill(self) -> int:
        """Copies rows into the window; gives how many, in whole batches, fewer where the source or the run ends."""
        planned = min(self.window_tokens, self._total_rows - self._window * self.window_tokens)
        filled = 0
        while filled < planned and (chunk := self._rows.take(int(planned - filled))):
            end = filled + len(next(iter(chunk.values())))
            for name, rows in chunk.items():
                self._buffers[name][filled:end].copy_(rows)
            filled = end
        return filled // self._batch_tokens * self._batch_tokens

    def _permutation(self, rows: int) -> Tensor:
        if not self._shuffle:
            return torch.arange(rows, device=self._device)
        mixed = np.random.SeedSequence((self._seed, self._rank, self._window)).generate_state(1, np.uint64)
        # Drawn on the CPU, whose generator gives the same numbers whatever the device.
        generator = torch.Generator().manual_seed(int(mixed[0]))
        return torch.randperm(rows, generator=generator).to(self._device)

    def state_dict(self) -> dict[str, Any]:
        """The window, the batches given out of it, and where its first row lies: values that JSON can hold."""
        self._leave_spent_window()
        return {"window": self._window, "batch": self._batch, "first_row": self._first_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was called; the window there is filled again with the next batch asked for.

        Args:
            state: What `state_dict` returned, for an equal source and equal options.
        """
        self._rows.load_state_dict(state["first_row"])
        self._begin_window(state["window"], state["first_row"])
        self._batch = state["batch"]

    def source_state(self) -> dict[str, Any]:
        """Where the source stands, behind every chunk that was read of it."""
        return self._source.state_dict()

    def close(self) -> None:
        """Closes the source."""
        self._source.close()


class ChunkRows:
    """A source of chunks read as a source of rows: a chunk is taken in pieces, and the place within it is known."""

    def __init__(self, source: RowSource) -> None:
        self._source = source
        self._drop_chunk()

    def _drop_chunk(self) -> None:
        self._chunk: dict[str, Tensor] = {}
        self._size = 0
        self._used = 0
        self._before_chunk: dict[str, Any] = {}

    def take(self, most: int) -> dict[str, Tensor]:
        """The next rows, at least one and at most `most`; nothing at the source's end."""
        empty_chunks = 0
        while self._used == self._size:
            if empty_chunks == _MOST_EMPTY_CHUNKS:
                raise ValueError(
                    f"{empty_chunks} chunks of activations without a row, one after the other: every token is left "
                    "out (special tokens, excluded positions, or no answer of an assistant)"
                )
            if not self._next_chunk():
                return {}
            empty_chunks += 1
        start, self._used = self._used, min(self._used + most, self._size)
        return {name: rows[start : self._used] for name, rows in self._chunk.items()}

    def skip(self, rows: int) -> None:
        """Passes over so many rows; the source makes no chunk for it but the one in which they end, if it can.

        Raises:
            ValueError: If the source ends before.
        """
        while rows:
            if self._used < self._size:
                passed = min(rows, self._size - self._used)
                self._used += passed
            else:
                before = self._source.state_dict()
                self._drop_chunk()
                passed = self._pass_over_chunk()
                if passed > rows:
                    self._source.load_state_dict(before)
                    self._next_chunk()
                    passed = 0
            rows -= passed

    def _pass_over_chunk(self) -> int:
        skip = getattr(self._source, "skip", None) or (lambda: len(next(iter(next(self._source).values()))))
        try:
            return skip()
        except StopIteration:
            raise ValueError("the source of activations ended before the rows that are wanted of it") from None

    def _next_chunk(self) -> bool:
        before = self._source.state_dict()
        self._drop_chunk()
        chunk = next(self._source, None)
        if chunk is None:
            return False
        self._chunk, self._before_chunk = chunk, before
        self._size = len(next(iter(chunk.values())))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Where the next row lies: the source's state before its chunk, and the rows of the chunk before it."""
        if self._used < self._size:
            return {"source": self._before_chunk, "skip": self._used}
        return {"source": self._source.state_dict(), "skip": 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state["source"])
        self._drop_chunk()
        if state["skip"]:
            self._next_chunk()
            self._used = state["skip"]


def _check_memory(rows: int, widths: dict[str, int], dtype: torch.dtype, device: torch.device) -> None:
    needed = rows * sum(widths.values()) * dtype.itemsize
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif device.type == "cpu":
        free = psutil.virtual_memory().available
    else:
        return
    if needed > free:
        dimensions = " + ".join(map(str, widths.values()))
        fitting = int(rows * free / needed)
        raise MemoryError(
            f"a window of {rows:,} rows × {dimensions} dimensions in {dtype} needs {needed / 1e9:,.1f} GB, "
            f"but {device} has {free / 1e9:,.1f} GB free: at most window_tokens={fitting:,} would fit"
        )
