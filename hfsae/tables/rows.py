"""Rows of a table, of a few documents at a time: what fires on each token, or what a whole document makes of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hfsae.analysis.document_sequences import DocumentSequences
from hfsae.analysis.feature_reader import Firings
from hfsae.tables.choices import Reduce

# Entries that wait before those of the same document and feature become one.
_WAITING = 1 << 22


@dataclass(frozen=True)
class Rows:
    """Sparse rows in the order of documents and tokens, features ascending in each.

    Attributes:
        document: int64 (rows,), each row's document, counted from the first of these.
        per_row: int64 (rows,), how many features each has.
        features: int64 (entries,).
        values: float32 (entries,).
        more: Further columns, (rows,) each.
    """

    document: Tensor
    per_row: Tensor
    features: Tensor
    values: Tensor
    more: dict[str, Tensor]


class DocumentRows:
    """One row a document.

    Args:
        n_documents: How many documents there are.
        n_features: Width of the SAE.
        reduce: How values come from those of tokens.
    """

    def __init__(self, n_documents: int, n_features: int, reduce: Reduce):
        self._n_features, self._reduce = n_features, reduce
        self._n_tokens = torch.zeros(n_documents, dtype=torch.int64)
        self._last = torch.full((n_documents,), -4)  # below the order of a BOS at position -1
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._waiting = 0

    def add(self, pieces: DocumentSequences, firings: Firings, first: int) -> None:
        """Takes in what fires on some pieces.

        Args:
            pieces: Of the documents.
            firings: On their tokens.
            first: The row of the first document.
        """
        keep = pieces.tokens.keep
        documents = pieces.documents - first
        self._n_tokens.index_add_(0, documents, keep.sum(1))
        last_column = torch.where(keep.any(1), keep.shape[1] - 1 - keep.flip(1).int().argmax(1), -1)
        has_any = last_column >= 0
        self._last.scatter_reduce_(0, documents[has_any], _order(pieces.starts, last_column)[has_any], "amax")
        piece, column = firings.tokens // keep.shape[1], firings.tokens % keep.shape[1]
        features, values = firings.features, firings.values
        if self._reduce == "last":
            at_end = column == last_column[piece]
            piece, column, features, values = (part[at_end] for part in (piece, column, features, values))
            self._positions.append(_order(pieces.starts[piece], column))
        elif self._reduce == "count":
            values = torch.ones_like(values)
        self._keys.append(documents[piece] * self._n_features + features)
        self._values.append(values.double())
        self._waiting += len(values)
        if self._waiting > _WAITING and self._reduce != "last":
            self._combine()

    def _combine(self) -> tuple[Tensor, Tensor]:
        """(entries,) keys, ascending, and values of which each document and feature has one."""
        keys = torch.cat(self._keys or [torch.zeros(0, dtype=torch.int64)])
        values = torch.cat(self._values or [torch.zeros(0, dtype=torch.float64)])
        if self._reduce == "last":
            # Documents longer than the context end in a later piece: only that one's last token is theirs.
            positions = torch.cat(self._positions or [torch.zeros(0, dtype=torch.int64)])
            ends = positions == self._last[keys // self._n_features]
            keys, values = keys[ends], values[ends]
        keys, place = torch.unique(keys, return_inverse=True)
        combined = torch.zeros(len(keys), dtype=torch.float64)
        if self._reduce == "max":
            combined.scatter_reduce_(0, place, values, "amax")
        else:
            combined.index_add_(0, place, values)
        if self._reduce != "last":
            self._keys, self._values, self._waiting = [keys], [combined], 0
        return keys, combined

    def rows(self) -> Rows:
        """All of them; a document without a token that counts has no feature."""
        keys, values = self._combine()
        documents, features = keys // self._n_features, keys % self._n_features
        if self._reduce == "mean":
            values = values / self._n_tokens[documents]
        per_row = torch.bincount(documents, minlength=len(self._n_tokens))
        every = torch.arange(len(self._n_tokens))
        return Rows(every, per_row, features, values.float(), {"n_tokens": self._n_tokens})


def _order(starts: Tensor, columns: Tensor) -> Tensor:
    """What puts tokens of a document in order: a BOS in front of a piece has the position of the token before it."""
    return 2 * (starts + columns) + (columns > 0)


class TokenRows:
    """One row a token that counts.

    Args:
        n_features: Width of the SAE.
    """

    def __init__(self, n_features: int):
        self._n_features = n_features
        self._tokens: list[tuple[Tensor, Tensor, Tensor]] = []
        self._entries: list[tuple[Tensor, Tensor, Tensor]] = []
        self._n_rows = 0

    def add(self, pieces: DocumentSequences, firings: Firings, first: int) -> None:
        """Takes in what fires on some pieces; arguments as of `DocumentRows.add`."""
        keep = pieces.tokens.keep
        piece, column = keep.nonzero(as_tuple=True)
        position = pieces.starts[piece] + column
        self._tokens.append((pieces.documents[piece] - first, position, pieces.tokens.input_ids[piece, column]))
        row_of = (keep.flatten().cumsum(0) - 1)[firings.tokens] + self._n_rows
        self._entries.append((row_of, firings.features, firings.values))
        self._n_rows += len(piece)

    def rows(self) -> Rows:
        """All of them."""
        if not self._tokens:
            nothing = torch.zeros(0, dtype=torch.int64)
            return Rows(nothing, nothing, nothing, nothing.float(), {"position": nothing, "token_id": nothing})
        document, position, token_id = (torch.cat(parts) for parts in zip(*self._tokens, strict=True))
        row_of, features, values = (torch.cat(parts) for parts in zip(*self._entries, strict=True))
        order = position.argsort(stable=True)
        order = order[document[order].argsort(stable=True)]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        row_of = rank[row_of]
        by_feature = (row_of * self._n_features + features).argsort()
        per_row = torch.bincount(row_of, minlength=len(order))
        more = {"position": position[order], "token_id": token_id[order]}
        return Rows(document[order], per_row, features[by_feature], values[by_feature], more)
