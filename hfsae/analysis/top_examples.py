"""The best few entries of every feature seen so far: memory for features × examples, however long the text is.

One rule keeps the top examples (by activation) and a uniform sample (by a random number that the context determines).
The order in which entries come does not change what is kept, so parts of a text can be merged.
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


class TopExamples:
    """The `size` entries of highest score of each feature, no two of them with the same context.

    Equal scores are told apart by document and position, the earlier first.

    Args:
        n_features: Number of features.
        size: Entries kept of each.
        fields: The columns by name, each with one row (1, ...) of what an empty place holds.
    """

    def __init__(self, n_features: int, size: int, fields: Fields):
        self.size = size
        blank = {"score": torch.tensor([_EMPTY], dtype=torch.float64)}
        blank |= {name: torch.tensor([-1]) for name in ("document", "position", "context")}
        self._blank: Fields = blank | fields
        columns = {
            name: row.unsqueeze(0).repeat(n_features, size, *[1] * (row.dim() - 1))
            for name, row in self._blank.items()
        }
        # What entries are compared by is kept in order. The rest, which is large, stays where it was put.
        self._keys = {name: columns.pop(name) for name in blank}
        self._rest, self._slots = columns, torch.arange(size).repeat(n_features, 1)

    @property
    def fields(self) -> Fields:
        """The columns, (n_features, size, ...); an empty place has the score −inf."""
        empty, rows = self._keys["score"] == _EMPTY, torch.arange(len(self._slots))[:, None]
        rest = {name: column[rows, self._slots] for name, column in self._rest.items()}
        for name, column in rest.items():
            column[empty] = self._blank[name]
        return self._keys | rest

    def may_enter(self, features: Tensor, scores: Tensor) -> Tensor:
        """(entries,) bool, False where all places of the feature are taken by higher scores."""
        return scores >= self._keys["score"][:, -1][features]

    def offer(self, features: Tensor, entries: Fields) -> None:
        """Lets entries take the places that are theirs.

        Args:
            features: int64 (entries,).
            entries: Every column, (entries, ...).
        """
        best = rank(features, entries, self.size).rows
        self.place(features[best], {name: column[best] for name, column in entries.items()})

    def place(self, features: Tensor, entries: Fields) -> None:
        """As `offer`, of entries that `rank` has put in order and thinned out.

        What is kept is in order already: newcomers are compared with it, and nothing else is sorted or moved.
        """
        if not len(features):
            return
        new = torch.arange(len(features))
        touched, row = features.unique_consecutive(return_inverse=True)
        kept = {name: column[touched] for name, column in self._keys.items()}
        is_better, is_same = _compare(kept, row, entries, new)
        # Of the same context the better one stays.
        wanted = ~(is_better & is_same).any(1)
        new, row, is_better, is_same = new[wanted], row[wanted], is_better[wanted], is_same[wanted]
        alive = kept["score"] > _EMPTY
        replaced = is_same.nonzero()
        alive[row[replaced[:, 0]], replaced[:, 1]] = False

        new_ranks = (is_better & alive[row]).sum(1) + _count_within(row)
        newcomers_before = torch.zeros_like(kept["context"]).index_add_(0, row, (~is_better).long())
        kept_ranks = alive.cumsum(1) - 1 + newcomers_before
        stays, enters = (alive & (kept_ranks < self.size)).nonzero(as_tuple=True), new_ranks < self.size
        staying = {name: column[stays] for name, column in kept.items()}
        entering = {name: column[new[enters]] for name, column in entries.items()}
        slots = self._slots[touched][stays]
        free = torch.ones_like(alive).index_put_((stays[0], slots), torch.tensor(False))
        row = row[enters]
        taken = torch.argsort(free.byte(), dim=1, descending=True, stable=True)[row, _count_within(row)]
        for name, column in self._keys.items():
            column[touched] = self._blank[name]
        self._write(touched[stays[0]], kept_ranks[stays], slots, staying)
        self._write(touched[row], new_ranks[enters], taken, entering)

    def _write(self, features: Tensor, ranks: Tensor, slots: Tensor, entries: Fields) -> None:
        """Puts entries at their ranks; entries that bring all columns, into their slots too."""
        self._slots[features, ranks] = slots
        for name, column in entries.items():
            if name in self._keys:
                self._keys[name][features, ranks] = column
            else:
                self._rest[name][features, slots] = column

    def merge(self, other: "TopExamples | Fields") -> None:
        """Takes in what was kept of another part of the text."""
        columns = other.fields if isinstance(other, TopExamples) else other
        features, places = (columns["score"] > _EMPTY).nonzero(as_tuple=True)
        self.offer(features, {name: column[features, places] for name, column in columns.items()})


def _compare(kept: Fields, row: Tensor, entries: Fields, new: Tensor) -> tuple[Tensor, Tensor]:
    """(new, size) bool: which of the kept entries of its feature are better than each new one, and of its context."""
    score, document, position, context = (
        (kept[name][row], entries[name][new, None]) for name in ("score", "document", "position", "context")
    )
    is_earlier = (document[0] < document[1]) | ((document[0] == document[1]) & (position[0] <= position[1]))
    is_better = (score[0] > score[1]) | ((score[0] == score[1]) & is_earlier)
    return is_better, (context[0] == context[1]) & (score[0] > _EMPTY)


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
