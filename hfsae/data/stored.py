"""Activations that exist already: tensors, a dataset of vectors, or whatever the user can iterate over."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hfsae.data.activation_sources import check_finite
from hfsae.data.document_column import refuse_transform
from hfsae.processes import refuse_no_process

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

Table = Tensor | np.ndarray


class StoredRows:
    """Rows that can be read by number; each process reads its share of them, in order.

    Args:
        rows: How many there are, for all processes together.
        chunk_rows: Rows in a chunk; the last one of an epoch may have fewer.
        rank: This process.
        world_size: The number of processes.
        repeat: Begin again at the end.
    """

    def __init__(self, rows: int, chunk_rows: int, rank: int, world_size: int, repeat: bool) -> None:
        if chunk_rows < 1:
            raise ValueError(f"chunk_rows is {chunk_rows}: expected at least 1 row.")
        refuse_no_process(rank, world_size)
        self._share = self._share_of(rows, rank, world_size)
        if not self._share:
            raise ValueError(f"{rows} rows of activations leave none for rank {rank} of {world_size}")
        self._chunk_rows = chunk_rows
        self._repeat = repeat
        self._position = 0

    @staticmethod
    def _share_of(rows: int, rank: int, world_size: int) -> range:
        return range(rank, rows, world_size)

    def _read(self, rows: range) -> dict[str, Tensor]:
        """The rows of these numbers, for each hook point (rows, d)."""
        raise NotImplementedError("abstract: a kind of store says how its rows are read")

    @property
    def widths(self) -> dict[str, int]:
        """The size of the activations at each hook point."""
        return {name: rows.shape[1] for name, rows in self._read(range(1)).items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        if self._position == len(self._share):
            if not self._repeat:
                raise StopIteration
            self._position = 0
        rows = self._share[self._position : self._position + self._chunk_rows]
        self._position += len(rows)
        chunk = self._read(rows)
        check_finite(chunk)
        return chunk

    def state_dict(self) -> dict[str, Any]:
        """How many of this process's rows were read in this epoch."""
        return {"position": self._position, "rows": len(self._share)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was called.

        Raises:
            ValueError: If it was called on another number of rows.
        """
        if state["rows"] != len(self._share):
            raise ValueError(f"this place was saved with {state['rows']} rows a process, there are {len(self._share)}")
        self._position = state["position"]

    def close(self) -> None:
        """Does nothing: there is nothing open."""


class TensorActivations(StoredRows):
    """Activations in memory.

    Args:
        activations: A tensor or numpy array (rows, d), or one for each hook point, all with the same rows. Of an array
            that is mapped from a file (`numpy.memmap`), only the chunk that is read is in memory.
        hook_point: The name of a tensor that comes alone.
        chunk_rows: Rows in a chunk.
        rank: This process; it reads the rows r::world_size, in order.
        world_size: The number of processes.
        repeat: Begin again at the end.

    Raises:
        ValueError: If a tensor is not (rows, d) and of a floating-point type, or the numbers of rows differ.
        NonFiniteActivationsError: While iterating, if a row holds NaN or infinity.
    """

    def __init__(
        self,
        activations: Table | Mapping[str, Table],
        *,
        hook_point: str = "activations",
        chunk_rows: int = 4096,
        rank: int = 0,
        world_size: int = 1,
        repeat: bool = True,
    ) -> None:
        self._activations = _tables(activations, hook_point)
        rows = len(next(iter(self._activations.values())))
        super().__init__(rows, chunk_rows, rank, world_size, repeat)

    def _read(self, rows: range) -> dict[str, Tensor]:
        return {name: as_rows(table[rows.start : rows.stop : rows.step]) for name, table in self._activations.items()}


class DatasetActivations(StoredRows):
    """Activations in a `datasets.Dataset`, one vector a row in each of the given columns.

    Args:
        dataset: A map-style dataset; for a stream use `IteratorActivations(stream.with_format("torch").batch(4096))`.
        columns: The columns to read, named as their hook points; or a mapping from hook points to columns.
        chunk_rows: Rows in a chunk.
        rank: This process; it reads the rows r::world_size, in order.
        world_size: The number of processes.
        repeat: Begin again at the end.

    Raises:
        ValueError: If a column is missing or does not hold vectors of one length, or the dataset has a transform.
        NonFiniteActivationsError: While iterating, if a row holds NaN or infinity.
    """

    def __init__(
        self,
        dataset: "Dataset",
        columns: str | Sequence[str] | Mapping[str, str],
        *,
        chunk_rows: int = 4096,
        rank: int = 0,
        world_size: int = 1,
        repeat: bool = True,
    ) -> None:
        if not isinstance(columns, Mapping):
            columns = {column: column for column in ([columns] if isinstance(columns, str) else columns)}
        missing = set(columns.values()) - set(dataset.column_names)
        if missing or not columns:
            raise ValueError(f"columns {sorted(columns.values())}: expected some of {dataset.column_names}")
        refuse_transform(dataset, "the dataset of activations")
        self._columns = dict(columns)
        self._dataset = dataset.with_format("torch", columns=sorted(set(columns.values())))
        super().__init__(len(dataset), chunk_rows, rank, world_size, repeat)

    def _read(self, rows: range) -> dict[str, Tensor]:
        table: Any = self._dataset[rows]
        return _as_chunk({name: table[column] for name, column in self._columns.items()})


class IteratorActivations:
    """Activations from anything that yields tensors or numpy arrays (rows, d), or dicts of them by hook point.

    What a `DataLoader` over a `TensorDataset` of one tensor yields, a list of one, stands for its tensor.

    Where it can be iterated over again (a list, a dataset, an object with `__iter__`) it is, at its end and to go
    back. A generator ends with its last chunk. A saved place is a number of chunks: to get there, that many are made
    and dropped. With several processes each one passes an iterable of its own share.

    Args:
        iterable: What yields the chunks.
        hook_point: The name of tensors that come alone.

    Raises:
        ValueError: If there is no chunk, or one is not as described or unlike the first.
        NonFiniteActivationsError: While iterating, if a row holds NaN or infinity.
    """

    def __init__(self, iterable: Iterable[Any], *, hook_point: str = "activations") -> None:
        self._iterable = iterable
        self._hook_point = hook_point
        self._iterator = iter(iterable)
        self._taken = 0
        # The first chunk tells the widths, and is given out as the first.
        first = next(self._iterator, None)
        if first is None:
            raise ValueError("the iterable of activations is empty")
        self._first: dict[str, Tensor] | None = _as_chunk(first, hook_point)
        self._widths = {name: rows.shape[1] for name, rows in self._first.items()}

    @property
    def widths(self) -> dict[str, int]:
        """The size of the activations at each hook point."""
        return self._widths

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        chunk = self._advance()
        widths = {name: rows.shape[1] for name, rows in chunk.items()}
        if widths != self._widths:
            raise ValueError(f"chunk {self._taken} has the widths {widths}, the first one had {self._widths}")
        check_finite(chunk)
        return chunk

    def _advance(self) -> dict[str, Tensor]:
        chunk, self._first = self._first, None
        if chunk is None:
            chunk = _as_chunk(self._next_of_any_epoch(), self._hook_point)
        self._taken += 1
        return chunk

    def _next_of_any_epoch(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            if self._is_one_shot():
                raise
            self._iterator = iter(self._iterable)
            return next(self._iterator)

    def _is_one_shot(self) -> bool:
        return isinstance(self._iterable, Iterator)

    def state_dict(self) -> dict[str, Any]:
        """The number of chunks taken so far."""
        return {"chunks": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where `state_dict` was called, by making all chunks up to there.

        Raises:
            ValueError: If that lies behind and the iterable cannot be iterated over again, or if it ends before.
        """
        if state["chunks"] < self._taken:
            if self._is_one_shot():
                raise ValueError(
                    f"cannot go back from chunk {self._taken} to chunk {state['chunks']} of an iterator that runs "
                    "once: pass an object that can be iterated over again, or a new iterator"
                )
            self._iterator, self._first, self._taken = iter(self._iterable), None, 0
        logger.info("Making and dropping %d chunks of activations to resume", state["chunks"] - self._taken)
        while self._taken < state["chunks"]:
            try:
                self._advance()
            except StopIteration:
                raise ValueError(f"activations end at chunk {self._taken}, expected {state['chunks']}") from None

    def close(self) -> None:
        """Does nothing: the iterable belongs to the user."""


def as_rows(table: Table) -> Tensor:
    """A table as a tensor that belongs to no graph: nothing is to be trained through it. Arrays are copied."""
    if isinstance(table, Tensor):
        return table.detach() if table.requires_grad else table
    # A copy: torch warns of arrays that cannot be written to, such as those mapped from a file.
    return torch.from_numpy(np.array(table))


def _as_chunk(activations: Any, hook_point: str = "activations") -> dict[str, Tensor]:
    """Activations by hook point, (rows, d) with the same rows everywhere."""
    if isinstance(activations, list | tuple) and len(activations) == 1:
        activations = activations[0]
    return {name: as_rows(table) for name, table in _tables(activations, hook_point).items()}


def _tables(activations: Any, hook_point: str) -> dict[str, Table]:
    """Checks that activations are (rows, d) by hook point, with the same rows everywhere."""
    if isinstance(activations, Table):
        activations = {hook_point: activations}
    if not isinstance(activations, Mapping) or not activations:
        told = f"a {type(activations).__name__}"
        if isinstance(activations, list | tuple | Mapping):
            told += f" of {len(activations)}"
        raise ValueError(f"activations are {told}, expected a tensor or numpy array (rows, d), or such by hook point")
    for name, rows in activations.items():
        of_table = isinstance(rows, Table)
        if not of_table or rows.ndim != 2 or not _is_float(rows):
            found = f"{tuple(rows.shape)} of {rows.dtype}" if of_table else type(rows).__name__
            raise ValueError(
                f"activations at {name} are {found}, expected a floating-point tensor (rows, d): "
                "flatten a tensor (batch, seq, d) with .flatten(0, 1)"
            )
    if len({len(rows) for rows in activations.values()}) != 1:
        counts = {name: len(rows) for name, rows in activations.items()}
        raise ValueError(f"the hook points have different numbers of rows: {counts}")
    return dict(activations)


def _is_float(table: Table) -> bool:
    if isinstance(table, Tensor):
        return table.is_floating_point()
    return table.dtype in (np.float16, np.float32, np.float64)
