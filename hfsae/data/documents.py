"""Reading documents in order: this process's share, epoch after epoch, from a place that can be saved.

A group of documents is a dict of columns, as slicing a `datasets.Dataset` gives it.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# Large enough for the tokenizer's batched call, small enough for a group of whole books.
_GROUP = 16


class DocumentReader(Protocol):
    """What `TokenBlocks` needs of a dataset.

    Attributes:
        epoch: How many epochs were begun before this one.
        position: How many documents of this epoch were read by this process.
    """

    epoch: int
    position: int

    def read(self) -> dict[str, Any] | None:
        """The next group of documents of this epoch, or None at its end."""
        ...

    def start_epoch(self, epoch: int) -> None:
        """Goes to the first document of an epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the next `read` begins, in values that JSON can hold."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was called."""
        ...


class TensorRows:
    """A table of token ids (rows, length) that is indexed as a dataset with the one column `input_ids`."""

    COLUMN = "input_ids"

    def __init__(self, input_ids: torch.Tensor) -> None:
        self._input_ids = input_ids.cpu()

    def __len__(self) -> int:
        return len(self._input_ids)

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Any]:
        return {self.COLUMN: self._input_ids[list(rows)].numpy()}


class IndexedDocuments:
    """Reads a dataset that has a length: rank r takes the documents r::world_size of each epoch's order.

    Args:
        dataset: A map-style dataset or `TensorRows`.
        rank: This process.
        world_size: The number of processes.
        shuffle: Whether each epoch has an order of its own, a function of `(seed, epoch)`.
        seed: The seed of these orders, the same for all processes.
    """

    def __init__(
        self, dataset: "Dataset | TensorRows", *, rank: int, world_size: int, shuffle: bool, seed: int
    ) -> None:
        self._dataset = dataset
        self._share = slice(rank, None, world_size)
        self._shuffle = shuffle
        self._seed = seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.position = epoch, 0
        order = np.arange(len(self._dataset))
        if self._shuffle:
            order = np.random.default_rng([self._seed, epoch]).permutation(order)
        self._order = order[self._share]

    def read(self) -> dict[str, Any] | None:
        rows = self._order[self.position : self.position + _GROUP]
        self.position += len(rows)
        return self._dataset[rows.tolist()] if len(rows) else None

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start_epoch(state["epoch"])
        self.position = state["position"]


class StreamedDocuments:
    """Reads a streaming dataset: whole shards for each process where they divide evenly, else every n-th document.

    Of a stream with `skip(n)`, `take(n)` or `interleave_datasets` it is every n-th document always. `datasets` would
    share the count out among the shards, and mix the shards of each process by themselves. So processes together would
    read other documents than one process does.

    Args:
        dataset: A streaming dataset, read in the same order in every epoch. One with a shuffle buffer loses the
            buffer's documents when it is resumed.
        rank: This process.
        world_size: The number of processes.
    """

    def __init__(self, dataset: "IterableDataset", *, rank: int, world_size: int) -> None:
        self._dataset = dataset
        self._rank = rank
        self._world_size = world_size
        even = dataset.num_shards % world_size == 0  # else it is every n-th document already
        self._by_document = world_size > 1 and even and _is_of_documents(dataset)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self._open(epoch, position=0, stream_state=None)

    def _open(self, epoch: int, position: int, stream_state: dict[str, Any] | None) -> None:
        from datasets.distributed import split_dataset_by_node

        self.epoch, self.position = epoch, position
        # A stream keeps its own state, so each opening gets a stream of its own. The epoch is not told to it: it would
        # hand other shards to other processes then, which may leave one of them with nothing.
        rank, world_size = (0, 1) if self._by_document else (self._rank, self._world_size)
        self._stream = split_dataset_by_node(self._dataset, rank=rank, world_size=world_size)
        if stream_state is not None:
            self._stream.load_state_dict(stream_state)
        self._opened_at = stream_state
        self._has_read = False
        self._documents: Iterator[dict[str, Any]] = iter(self._stream)
        if self._by_document:
            # A state is that of the last document which this process read.
            first = self._rank if stream_state is None else self._world_size - 1
            self._documents = islice(self._documents, first, None, self._world_size)

    def read(self) -> dict[str, Any] | None:
        documents: list[dict[str, Any]] = []
        try:
            for document in islice(self._documents, _GROUP):
                documents.append(document)
        except ValueError as error:  # of a broken file, which `datasets` names in its log
            read = self.position + len(documents)
            raise ValueError(f"the stream of text broke after {read} documents: {error}") from error
        self._has_read = True
        self.position += len(documents)
        return {name: [document[name] for document in documents] for name in documents[0]} if documents else None

    def state_dict(self) -> dict[str, Any]:
        # Before its first document a stream does not know where it was told to begin.
        stream_state = self._stream.state_dict() if self._has_read else self._opened_at
        place = {"epoch": self.epoch, "position": self.position, "stream": stream_state}
        return {**place, "by_document": True} if self._by_document else place

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._by_document and state["stream"] is not None and not state.get("by_document"):
            raise ValueError(
                "this place in a stream with skip, take or interleave_datasets was saved by an older hfsae, whose "
                "processes read other documents: begin the run again."
            )
        self._open(state["epoch"], state["position"], state["stream"])


def _is_of_documents(dataset: "IterableDataset") -> bool:
    """Whether the steps of a stream count documents, or mix several streams, which shards would do each for itself."""
    from datasets.iterable_dataset import CyclingMultiSourcesExamplesIterable

    steps: list[Any] = [dataset._ex_iterable]
    while steps:
        step = steps.pop()
        if getattr(step, "split_when_sharding", False) or isinstance(step, CyclingMultiSourcesExamplesIterable):
            return True
        steps += [step.ex_iterable] if hasattr(step, "ex_iterable") else getattr(step, "ex_iterables", [])
    return False
