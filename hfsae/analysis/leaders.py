"""The best few entries of every feature seen so far: memory for features × examples, however long the text is.

One rule keeps the top examples (by activation) and a uniform sample (by a random number that the context determines):
what is kept does not depend on the order in which entries come, so that parts of a text can be merged.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Fields = dict[str, Tensor]
"""Columns of entries: one row each. `score`, `document`, `position` and `context` are always among them."""

_EMPTY = -torch.inf


@dataclass(frozen=True)
class Ranked:
    """Which rows of some entries are the best of their feature, and where they come in its order."""

    rows: Tensor
    ranks: Tensor


class Leaders:
    """The `size` entries of highest score of each feature, no two of them with the same context.

    Equal scores are told apart by document and position, the earlier first.

    Args:
        n_features: Number of features.
        size: Entries kept of each.
        fields: The columns by name, each with one row (1, ...) of what an empty place holds.

    Attributes:
        fields: The columns, (n_features, size, ...); an empty place has the score −inf.
    """

    def __init__(self, n_features: int, size: int, fields: Fields):
        self.size = size
        self._blank = {"score": torch.tensor([_EMPTY], dtype=torch.float64)}
        self._blank |= {name: torch.tensor([-1]) for name in ("document", "position", "context")} | fields
        self.fields: Fields = {
            name: row.unsqueeze(0).repeat(n_features, size, *[1] * (row.dim() - 1))
            for name, row in self._blank.items()
        }

    def may_enter(self, features: Tensor, scores: Tensor) -> Tensor:
        """(entries,) bool, False where all places of the feature are taken by higher scores."""
        return scores >= self.fields["score"][:, -1][features]

    def offer(self, features: Tensor, entries: Fields) -> None:
        """Lets entries take the places that are theirs.

        Args:
            features: int64 (entries,).
            entries: Every column, (entries, ...).
        """
        if not len(features):
            return
        touched = features.unique()
        kept = {name: column[touched].flatten(0, 1) for name, column in self.fields.items()}
        taken = kept["score"] > _EMPTY
        all_features = torch.cat([touched.repeat_interleave(self.size)[taken], features])
        both = {name: torch.cat([column[taken], entries[name]]) for name, column in kept.items()}
        best = rank(all_features, both, self.size)
        places = all_features[best.rows], best.ranks
        for name, column in self.fields.items():
            column[touched] = self._blank[name]
            column[places] = both[name][best.rows]

    def merge(self, other: "Leaders | Fields") -> None:
        """Takes in what was kept of another part of the text."""
        columns = other.fields if isinstance(other, Leaders) else other
        features, places = (columns["score"] > _EMPTY).nonzero(as_tuple=True)
        self.offer(features, {name: column[features, places] for name, column in columns.items()})


def rank(features: Tensor, entries: Fields, size: int) -> Ranked:
    """The best `size` entries of each feature; of those with the same context only the best.

    Args:
        features: int64 (entries,).
        entries: `score`, `document`, `position` and `context`, (entries,) each.
        size: How many of each feature.

    Returns:
        Their rows, by feature and rank.
    """
    order = ordered(features, -entries["score"], entries["document"], entries["position"])
    order = order[_first_of_each(features[order], entries["context"][order])]
    ranks = _count_within(features[order])
    return Ranked(order[ranks < size], ranks[ranks < size])


def ordered(*keys: Tensor) -> Tensor:
    """The order of rows by the first key, where it is equal by the second, and so on."""
    order = torch.arange(len(keys[0]))
    for key in reversed(keys):
        order = order[torch.argsort(key[order], stable=True)]
    return order


def _first_of_each(*keys: Tensor) -> Tensor:
    """Rows whose keys no earlier row has, in their order."""
    order = ordered(*keys)
    is_new = torch.zeros(len(order), dtype=torch.bool)
    is_new[:1] = True
    for key in keys:
        is_new[1:] |= key[order][1:] != key[order][:-1]
    return order[is_new].sort().values


def _count_within(features: Tensor) -> Tensor:
    """How many rows of the same feature come before each, in rows that are sorted by feature."""
    rows = torch.arange(len(features))
    return rows - torch.searchsorted(features, features)
