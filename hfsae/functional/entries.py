"""Entries of a chunk of tokens, on their way to a pattern: found by a cut, joined, trimmed to the largest.

On a CPU comparing (tokens, n) numbers costs as much as a product of some size. `Grouped` compares whole numbers of the
same bits, which are ordered alike above 0, and only where the maximum of a group of features passes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae.functional.kernels import serves
from hfsae.functional.patterns import SparsePattern

# Floats as whole numbers of their bits: of numbers that are not negative, the larger one is the larger whole number.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Features of one group, of which the maximum is looked at first; a group that passes is looked at one by one.
GROUP = 8
# Flags are looked at so many at a time, as one number.
_WORD = 8


@dataclass
class Entries:
    """Some entries of a chunk: how many each token has, their features, their pre-activations.

    `each` is how many every token has, where that is known without asking a device; else 0.
    """

    per_token: Tensor
    features: Tensor
    pre: Tensor
    each: int = 0

    @classmethod
    def of_tokens(cls, tokens: Tensor, features: Tensor, pre: Tensor, n_tokens: int) -> "Entries":
        """From the token of each entry, tokens in order."""
        return cls(torch.bincount(tokens, minlength=n_tokens), features, pre)

    @classmethod
    def where(cls, mask: Tensor, pre: Tensor) -> "Entries":
        """The entries at which a mask is True, of which there should be few."""
        tokens, features = few_nonzero(mask)
        return cls.of_tokens(tokens, features, pre[tokens, features], len(pre))

    @classmethod
    def above(cls, cut: Tensor | float, pre: Tensor) -> "Entries":
        """The entries whose pre-activations exceed a cut: a number, or a tensor () or (n,)."""
        if serves(pre):
            from hfsae.functional.kernels.above import above

            return cls(*above(pre, cut))
        return cls.where(pre > cut, pre)

    @classmethod
    def as_many_each(cls, features: Tensor, pre: Tensor) -> "Entries":
        """From (tokens, k) features and their pre-activations."""
        per_token = torch.full((len(features),), features.shape[1], device=features.device)
        return cls(per_token, features.flatten(), pre.flatten(), features.shape[1])

    @classmethod
    def joined(cls, parts: list["Entries"]) -> "Entries":
        """Those of chunks, one after the other."""
        if len(parts) == 1:
            return parts[0]
        each = parts[0].each if len({part.each for part in parts}) == 1 else 0
        return cls(
            torch.cat([part.per_token for part in parts]),
            torch.cat([part.features for part in parts]),
            torch.cat([part.pre for part in parts]),
            each,
        )

    @property
    def tokens(self) -> Tensor:
        """(entries,): the token of each."""
        positions = torch.arange(len(self.per_token), device=self.features.device)
        return torch.repeat_interleave(positions, self.per_token, output_size=len(self.features))

    def kept(self, keep: Tensor) -> "Entries":
        """The entries that a mask (entries,) keeps."""
        place = keep.nonzero()[:, 0]
        before = torch.searchsorted(place, F.pad(self.per_token.cumsum(0), (1, 0)))
        return Entries(before.diff(), self.features.index_select(0, place), self.pre.index_select(0, place))

    def with_rows(self, rows: Tensor, theirs: "Entries") -> "Entries":
        """Those of some further tokens put where they belong; these tokens have had none.

        Args:
            rows: (m,) the tokens, ascending.
            theirs: Their entries, of m tokens.
        """
        if not len(rows):
            return self
        order = torch.cat([self.tokens, rows[theirs.tokens]]).sort(stable=True).indices
        per_token = self.per_token.index_add(0, rows, theirs.per_token)
        features, pre = (torch.cat(pair)[order] for pair in ((self.features, theirs.features), (self.pre, theirs.pre)))
        return Entries(per_token, features, pre)

    def largest_of_each(self, k: int) -> "Entries":
        """The k largest of each token, which has none or at least k; of equal ones those of the first features."""
        if not len(self.features):
            return self
        tokens, width = self.tokens, int(self.per_token.amax())
        column = _place_in_segment(self.per_token, tokens)
        table = self.pre.new_full((len(self.per_token), width), -torch.inf)
        table.view(-1).index_copy_(0, tokens * width + column, self.pre)
        least = table.topk(k, sorted=False).values.amin(1)
        return self._at_least(least.index_select(0, tokens), tokens, self.per_token.clamp(max=k))

    def _at_least(self, least: Tensor, tokens: Tensor, wanted: Tensor) -> "Entries":
        """What is above `least` (entries,), and of what equals it the first features, `wanted` (tokens,) in all."""
        place = (self.pre >= least).nonzero()[:, 0]
        if len(place) > int(wanted.sum()):
            above = self.pre > least
            room = wanted - torch.bincount(tokens[above], minlength=len(wanted))
            equal = (self.pre == least).nonzero()[:, 0]
            equal = equal[_in_order(tokens[equal], self.features[equal])]
            theirs = tokens[equal]
            fits = _place_in_segment(torch.bincount(theirs, minlength=len(wanted)), theirs) < room[theirs]
            place = torch.cat([above.nonzero()[:, 0], equal[fits]]).sort().values
        return Entries(wanted, self.features.index_select(0, place), self.pre.index_select(0, place))

    def largest(self, budget: int) -> "Entries":
        """The `budget` largest of all; of equal ones those of the first tokens, of these the first features."""
        surplus = len(self.pre) - budget
        if surplus <= 0:
            return self
        if not budget:
            return self.kept(torch.zeros_like(self.features, dtype=torch.bool))
        least = self.pre.kthvalue(surplus + 1).values
        keep = ~(self.pre <= least)  # NaN, which counts as the largest here, stays
        equal = (self.pre == least).nonzero()[:, 0]
        room = budget - int(torch.count_nonzero(keep))
        if room < len(equal):
            equal = equal[_in_order(self.tokens[equal], self.features[equal])[:room]]
        keep[equal] = True
        return self.kept(keep)

    def pattern(self, n_features: int) -> tuple[SparsePattern, Tensor]:
        """The pattern of these entries, and their pre-activations."""
        return SparsePattern(self.features, self.per_token, n_features, self.each), self.pre


def _place_in_segment(lengths: Tensor, segment: Tensor) -> Tensor:
    """(entries,) the how manieth of its segment each entry is; (segments,) and (entries,), segments in order."""
    start = F.pad(lengths.cumsum(0), (1, 0))[:-1]
    return torch.arange(len(segment), device=segment.device) - start.index_select(0, segment)


def _in_order(tokens: Tensor, features: Tensor) -> Tensor:
    """The order of some entries by token, and of one token's by feature."""
    by_feature = features.sort(stable=True).indices
    return by_feature[tokens[by_feature].sort(stable=True).indices]


def few_nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """`mask.nonzero()` of an (N, n) mask in which little is True: looks at eight flags at a time."""
    if mask.shape[1] % _WORD or not mask.is_contiguous() or not mask.numel():
        return mask.nonzero(as_tuple=True)  # type: ignore[return-value]
    words = mask.view(torch.int64)
    rows, word = words.nonzero(as_tuple=True)
    found = words.view(-1).index_select(0, rows * words.shape[1] + word)
    hit, flag = found.view(torch.bool).view(-1, _WORD).nonzero(as_tuple=True)
    return rows.index_select(0, hit), word.index_select(0, hit) * _WORD + flag


class Grouped:
    """Non-negative numbers of a chunk in groups, to find the few that are large without a pass for each question.

    Args:
        pre: (tokens, n) floats, contiguous, n a multiple of 64.
    """

    def __init__(self, pre: Tensor):
        self._bits = pre.view(_BITS[pre.itemsize])
        self._type = pre.dtype
        # Features far apart make a group, so that whole rows are compared with one another.
        self._maxima = self._bits.unflatten(1, (GROUP, -1)).amax(1)

    def k_th(self, k: int, groups: int) -> Tensor | None:
        """(tokens,) a bound that the k-th largest of each row is not below; None where that needs more groups.

        The k-th largest of the maxima of groups is at most the k-th largest of all.

        Args:
            k: Which one.
            groups: How many groups are to be looked at, at least.
        """
        maxima = self._maxima
        if maxima.shape[1] < k:
            return None
        if (size := maxima.shape[1] // max(groups, k)) > 1:
            maxima = maxima[:, : maxima.shape[1] // size * size].unflatten(1, (size, -1)).amax(1)
        return maxima.topk(k, sorted=False).values.amin(1).view(self._type).float()

    def reaching(self, cut: Tensor) -> Tensor:
        """(tokens, groups) bool: which groups hold a number that reaches the token's cut.

        Args:
            cut: (tokens,) in the type of the numbers, above 0.
        """
        return self._maxima >= cut.view(self._bits.dtype)[:, None]

    def members(self, groups: Tensor, cut: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Tokens, features and values of the numbers of some groups that reach a cut, tokens in order.

        Args:
            groups: (tokens, groups) bool, few of them True.
            cut: (tokens,) as for `reaching`.
            most: Where there are more groups, None.
        """
        tokens, group = few_nonzero(groups)
        if len(tokens) > most:
            return None
        n, n_groups = self._bits.shape[1], self._maxima.shape[1]
        members = (tokens * n + group)[:, None] + n_groups * torch.arange(GROUP)
        found = self._bits.view(-1).index_select(0, members.view(-1))
        passes = found.view(-1, GROUP) >= cut.view(self._bits.dtype).index_select(0, tokens)[:, None]
        place = passes.view(-1).nonzero()[:, 0]
        hit = place // GROUP
        features = group.index_select(0, hit) + n_groups * (place - hit * GROUP)
        return tokens.index_select(0, hit), features, found.index_select(0, place).view(self._type)
