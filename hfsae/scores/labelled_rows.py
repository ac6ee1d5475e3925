"""`LabelledRows`: labelled tokens or documents in every basis, and what they are put together from."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hfsae.scores.needed import needed

FEATURES, UNTRAINED, NEURONS = "features", "untrained SAE", "neurons"
COORDINATES, COMPONENTS = "coordinates", "PCA"
SPARSE = (FEATURES, UNTRAINED)
"""The bases whose values are 0 nearly everywhere; they come as sparse matrices."""
BESIDE = (UNTRAINED, COORDINATES, COMPONENTS, NEURONS)
"""What stands beside the features of an SAE."""


@dataclass(frozen=True)
class LabelledRows:
    """Some tokens, or documents, with their labels.

    Attributes:
        labels: bool (N, concepts).
        documents: int64 (N,), the document of each; rows of one document resemble each other.
        values: By basis (N, units): float32 arrays, of the bases in `SPARSE` sparse matrices of scipy.
    """

    labels: NDArray[np.bool_]
    documents: NDArray[np.int64]
    values: dict[str, Any]

    def __len__(self) -> int:
        return len(self.labels)


def one_after_another(parts: Sequence[LabelledRows]) -> LabelledRows:
    """LabelledRows one after another.

    Args:
        parts: At least one, of the same bases.
    """
    sparse = needed("scipy.sparse")
    values = {
        basis: sparse.vstack([part.values[basis] for part in parts], format="csc")
        if basis in SPARSE
        else np.concatenate([part.values[basis] for part in parts])
        for basis in parts[0].values
    }
    labels, documents = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "documents"))
    return LabelledRows(labels, documents, values)


def all_of(parts: Iterable[LabelledRows], what: str) -> LabelledRows:
    """All rows of a text together.

    Raises:
        ValueError: If there is none.
    """
    found = [part for part in parts if len(part)]
    if not found:
        raise ValueError(f"{what} has no token that counts for this SAE: give more text.")
    return one_after_another(found)


class DocumentMeans:
    """Means over the tokens of each document, in every basis, that grow batch by batch."""

    def __init__(self, n_documents: int):
        self._sums: dict[str, Any] = {}
        self._n_tokens = np.zeros(n_documents)

    def add(self, of_tokens: NDArray[np.int64], values: dict[str, Any]) -> None:
        """Adds tokens, of which the document is given."""
        sparse = needed("scipy.sparse")
        n_documents = len(self._n_tokens)
        here, places = np.unique(of_tokens, return_inverse=True)
        self._n_tokens[here] += np.bincount(places)
        ones = np.ones(len(places), np.float32)
        belongs = sparse.csr_array((ones, (places, np.arange(len(places)))), shape=(len(here), len(places)))
        for basis, of_basis in values.items():
            found = belongs @ of_basis
            if basis in SPARSE:
                entries = found.tocoo()
                where = (here[entries.row], entries.col)
                found = sparse.csr_array((entries.data, where), shape=(n_documents, of_basis.shape[1]))
                self._sums[basis] = found if basis not in self._sums else self._sums[basis] + found
            else:
                zeros = np.zeros((n_documents, of_basis.shape[1]), np.float32)
                self._sums.setdefault(basis, zeros)[here] += found

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(documents,) which have a token."""
        return self._n_tokens > 0

    def values(self) -> dict[str, Any]:
        """By basis the means of the documents that have a token, as `LabelledRows` has them."""
        one_over = needed("scipy.sparse").diags_array((1 / np.maximum(self._n_tokens, 1)).astype(np.float32))
        means = {basis: (one_over @ summed)[self.counted] for basis, summed in self._sums.items()}
        return {basis: found.tocsc() if basis in SPARSE else np.asarray(found) for basis, found in means.items()}


class KeptReads:
    """What a language model makes of the tokens of documents, batch by batch, where it is not too much to keep.

    Args:
        most_bytes: What it may take; of more nothing is kept.
    """

    def __init__(self, most_bytes: int):
        self._most_bytes = most_bytes
        self._batches: list[tuple[NDArray[np.int64], Tensor]] = []
        self.n_bytes = 0

    @property
    def is_whole(self) -> bool:
        """Whether everything that was added is here."""
        return self.n_bytes <= self._most_bytes

    def add(self, of_tokens: NDArray[np.int64], read: Tensor) -> None:
        """Adds a batch: the document of each token, and what the SAE reads there, (N, d_in)."""
        self.n_bytes += read.numel() * read.element_size()
        if self.is_whole:
            self._batches.append((of_tokens, read.cpu()))
        else:
            self._batches.clear()

    def __iter__(self) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        return iter(self._batches)
