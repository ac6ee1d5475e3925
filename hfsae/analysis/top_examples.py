"""The best few entries of every feature seen so far: memory for features × examples, however long the text is.

One rule keeps the top examples (by activation) and a uniform sample (by a random number that the context determines).
The order in which entries come does not change what is kept, so parts of a text can be merged.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Fields = dict[str, Tensor]
"""Columns of entries: one row each. `score`, `document`, `position` and `context` are always among them."""

_EMPTY = -torch.inf


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
        return scores >= self._keys["score"][:, -1].contiguous().index_select(0, features)

    def offer(self, features: Tensor, entries: Fields) -> None:
        """Lets entries take the places that are theirs.

        Args:
            features: int64 (entries,).
            entries: Every column, (entries, ...).
        """
        best = rank(features, entries, self.size)
        self.place(features.index_select(0, best), rows_of(entries, best))

    def place(self, features: Tensor, entries: Fields) -> None:
        """As `offer`, of entries that `rank` has put in order and thinned out.

        What is kept is in order already: newcomers are compared with it, and nothing else is sorted or moved.
        """
        if not len(features):
            return
        size = self.size
        touched, row = features.unique_consecutive(return_inverse=True)
        kept = rows_of(self._keys, touched)
        better, newcomer, place = _compare(rows_of(kept, row), entries)
        # Of the same context the better one stays.
        wanted = torch.ones(len(row), dtype=torch.bool)
        wanted[newcomer[place < better[newcomer]]] = False
        alive = kept["score"] > _EMPTY
        replaced = wanted[newcomer]
        alive[row[newcomer[replaced]], place[replaced]] = False
        new = wanted.nonzero()[:, 0]
        row, better = row.index_select(0, new), better.index_select(0, new)

        # From here on a place of those touched is one number: row · size + column.
        alive_before = F.pad(alive.cumsum(1), (1, 0))
        new_ranks = alive_before.view(-1).index_select(0, row * (size + 1) + better) + _count_within(row)
        newcomers = torch.bincount(row * (size + 1) + better, minlength=alive_before.numel()).view_as(alive_before)
        kept_ranks = alive_before[:, :-1] + newcomers.cumsum(1)[:, :-1]
        stays = (alive & (kept_ranks < size)).view(-1).nonzero()[:, 0]
        enters = (new_ranks < size).nonzero()[:, 0]
        new, row = new.index_select(0, enters), row.index_select(0, enters)
        slots = self._slots.index_select(0, touched).view(-1)
        row_start = stays - stays % size
        is_free = torch.ones_like(alive)
        is_free.view(-1)[row_start + slots.index_select(0, stays)] = False
        taken = _places_in(is_free, row)

        # What comes to a place is now at another, or behind all places a newcomer, or last of all a blank.
        source = torch.full((alive.numel(),), alive.numel() + len(new))
        source[row_start + kept_ranks.view(-1).index_select(0, stays)] = stays
        source[row * size + new_ranks.index_select(0, enters)] = alive.numel() + torch.arange(len(new))
        entering = rows_of(entries, new)
        for column, old, come, blank in [
            (self._slots, slots, taken, torch.tensor([0])),
            *((self._keys[name], kept[name].view(-1), entering[name], self._blank[name]) for name in self._keys),
        ]:
            column.index_copy_(0, touched, torch.cat([old, come, blank]).index_select(0, source).view(-1, size))
        place = touched.index_select(0, row) * size + taken
        for name, column in self._rest.items():
            column.flatten(0, 1).index_copy_(0, place, entering[name])

    def merge(self, other: "TopExamples | Fields") -> None:
        """Takes in what was kept of another part of the text."""
        columns = other.fields if isinstance(other, TopExamples) else other
        features, places = (columns["score"] > _EMPTY).nonzero(as_tuple=True)
        self.offer(features, {name: column[features, places] for name, column in columns.items()})


def rows_of(entries: Fields, rows: Tensor) -> Fields:
    """Some rows of each column."""
    return {name: column.index_select(0, rows) for name, column in entries.items()}


def _compare(kept: Fields, new: Fields) -> tuple[Tensor, Tensor, Tensor]:
    """New entries beside what their features keep in order, columns (new, size).

    Returns:
        How many kept entries are better than each new one; of each pair with the same context the new entry and the
        kept one's rank.
    """
    score, document, position, context = (
        (kept[name], new[name][:, None]) for name in ("score", "document", "position", "context")
    )
    is_earlier = (document[0] < document[1]) | ((document[0] == document[1]) & (position[0] <= position[1]))
    is_better = (score[0] > score[1]) | ((score[0] == score[1]) & is_earlier)
    is_same = (context[0] == context[1]) & (score[0] > _EMPTY)
    entry, rank = is_same.nonzero(as_tuple=True)
    return is_better.sum(1), entry, rank


def _places_in(is_free: Tensor, row: Tensor) -> Tensor:
    """A column for each newcomer that is free in its row: the first newcomer of a row takes the first one.

    Args:
        is_free: bool (rows, columns), with as many True in a row as newcomers at least.
        row: (newcomers,), ascending.
    """
    free = is_free.view(-1).nonzero()[:, 0]
    in_row = is_free.sum(1)
    before = in_row.cumsum(0) - in_row
    return free.index_select(0, before.index_select(0, row) + _count_within(row)) - row * is_free.shape[1]


def rank(features: Tensor, entries: Fields, size: int) -> Tensor:
    """The best `size` entries of each feature; of those with the same context only the best.

    Args:
        features: int64 (entries,).
        entries: `score`, `document`, `position` and `context`, (entries,) each.
        size: How many of each feature.

    Returns:
        Their rows, by feature and rank.
    """
    order = ordered(features, _falling(entries["score"]), entries["document"], entries["position"])
    order = order[_first_of_each(features.index_select(0, order), entries["context"].index_select(0, order))]
    return order[_count_within(features.index_select(0, order)) < size]


def _falling(score: Tensor) -> Tensor:
    """int64 numbers that rise as float64 scores fall. Whole numbers are sorted in a tenth of the time."""
    bits = (score + 0.0).view(torch.int64)  # no −0.0
    return ~(bits ^ (bits >> 63 & torch.iinfo(torch.int64).max))


def ordered(*keys: Tensor) -> Tensor:
    """The order of rows by the first key, where it is equal by the second, and so on."""
    order = torch.argsort(keys[-1], stable=True)
    for key in reversed(keys[:-1]):
        order = order.index_select(0, torch.argsort(key.index_select(0, order), stable=True))
    return order


def _first_of_each(*keys: Tensor) -> Tensor:
    """Rows whose keys no earlier row has, in their order."""
    order = ordered(*keys)
    is_new = torch.zeros(len(order), dtype=torch.bool)
    is_new[:1] = True
    for key in keys:
        sorted_key = key.index_select(0, order)
        is_new[1:] |= sorted_key[1:] != sorted_key[:-1]
    return order[is_new].sort().values


def _count_within(features: Tensor) -> Tensor:
    """How many rows of the same feature come before each, in rows that are sorted by feature."""
    rows = torch.arange(len(features))
    is_first = torch.ones(len(features), dtype=torch.bool)
    is_first[1:] = features[1:] != features[:-1]
    return rows - torch.where(is_first, rows, 0).cummax(0).values
