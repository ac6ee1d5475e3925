"""Rules that pick features of all processes, where each holds some of an SAE's features and all see the same tokens.

A threshold, and the largest of a group of neighbours, are decided by each process alone. Of a token's k largest the
candidates' values go round, while they are few. Else, and for a batch's k·N largest, the bound is found from counts.
Of float32 numbers above 0 the larger one has the larger bits, so it is read off histograms of some bits after others.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard

from hfsae.functional import AbsTopK, BatchTopK, Elementwise, GroupMax, Selection, SparsePattern, TopK
from hfsae.functional.entries import Entries
from hfsae.functional.screening import Screen
from hfsae.functional.selection import Chunks, Screened

# Of the 31 bits of a number above 0 the upper ones are counted first, then these below.
_LOW_BITS = 16
_BITS = 31

FEW_CANDIDATES = 1024
"""So many a token of all processes go round as values; of more, four histograms of 256 counts are less."""

SHARED = (Elementwise, GroupMax, TopK, AbsTopK, BatchTopK)
"""Rules that `of_all` knows."""


def of_all(rule: Selection, mesh: DeviceMesh) -> Selection:
    """The rule of a whole SAE, as a process applies it to its own features.

    Args:
        rule: The rule of the whole SAE, one of `SHARED`.
        mesh: The processes, each with as many features, in order.
    """
    if isinstance(rule, GroupMax):
        return replace(rule, k=rule.k // mesh.size())
    if isinstance(rule, TopK):
        return _TopKOfAll(rule.k, mesh)
    if isinstance(rule, AbsTopK):
        return _AbsTopKOfAll(rule.k, mesh)
    if isinstance(rule, BatchTopK):
        return _BatchTopKOfAll(rule.k, mesh)
    assert isinstance(rule, Elementwise)
    return rule


@dataclass(frozen=True)
class _OfAll:
    """What this process's features offer by the same rule, of which it keeps what counts among all.

    Args:
        k: That of the whole SAE.
        mesh: The processes.
    """

    k: int
    mesh: DeviceMesh

    def load(self, look: object) -> float:
        return self.k / self.mesh.size()

    def mask(self, pre: Tensor) -> Tensor:
        offered = self._own(pre.shape[1]).mask(pre)
        tokens, features = offered.nonzero(as_tuple=True)
        found = Entries.of_tokens(tokens, features, pre[tokens, features], len(pre))
        kept = torch.zeros_like(offered)
        kept[tokens, features] = self._are_kept(found, pre.shape[1])
        return kept

    def select(self, chunks: Chunks, n_features: int) -> tuple[SparsePattern, Tensor]:
        return self._of_all(*self._own(n_features).select(chunks, n_features))

    def screened(self, screen: Screen) -> tuple[SparsePattern, Tensor] | None:
        offered = cast(Screened, self._own(screen.n_features)).screened(screen)
        return None if offered is None else self._of_all(*offered)

    def _of_all(self, pattern: SparsePattern, pre: Tensor) -> tuple[SparsePattern, Tensor]:
        found = Entries(pattern.per_token, pattern.features, pre)
        return found.kept(self._are_kept(found, pattern.n_features)).pattern(pattern.n_features)

    def _own(self, n_features: int) -> Selection:
        """The rule by which so many features of this process are offered."""
        raise NotImplementedError("abstract: a rule says what a process offers")

    def _are_kept(self, offered: Entries, n_features: int) -> Tensor:
        """(entries,) bool: which of this process's entries are among those of all; every process must call this."""
        raise NotImplementedError("abstract: a rule says what is kept")


class _TopKOfAll(_OfAll):
    """The k largest pre-activations of every token over the features of all processes."""

    def _own(self, n_features: int) -> Selection:
        return TopK(min(self.k, n_features))

    def _are_kept(self, offered: Entries, n_features: int) -> Tensor:
        candidates = offered.pre.view(-1, min(self.k, n_features))
        few = self.k * self.mesh.size() <= FEW_CANDIDATES
        return (self._by_values(candidates) if few else self._by_counts(candidates)).flatten()

    def _by_values(self, candidates: Tensor) -> Tensor:
        own = candidates.shape[1]
        padded = F.pad(candidates, (0, self.k - own), value=-torch.inf)
        everyone = DTensor.from_local(padded, self.mesh, [Shard(1)]).full_tensor()
        kept = torch.zeros_like(everyone, dtype=torch.bool)
        kept.scatter_(-1, everyone.topk(self.k, dim=-1, sorted=False).indices, True)
        return kept.chunk(self.mesh.size(), dim=-1)[self.mesh.get_local_rank()][:, :own]

    def _by_counts(self, candidates: Tensor) -> Tensor:
        """The same from histograms, one a token, of eight bits after the other."""
        bits = (candidates.float() + 0.0).view(torch.int32)  # −0 equals 0, but for its bits
        # Of numbers below 0 the larger one has the smaller bits.
        order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() + (1 << 31)
        left = torch.full((len(order), 1), self.k, device=order.device)
        kept, alike = torch.zeros_like(order, dtype=torch.bool), torch.ones_like(order, dtype=torch.bool)
        for shift in (24, 16, 8, 0):
            digits = (order >> shift) & 0xFF
            own = torch.zeros(len(order), 256, dtype=torch.int32, device=order.device)
            own.scatter_add_(1, digits, alike.int())
            counts = DTensor.from_local(own, self.mesh, [Partial()]).full_tensor()
            down_to = counts.flip(1).cumsum(1).flip(1)
            digit = (torch.count_nonzero(down_to >= left, dim=1)[:, None] - 1).clamp(min=0)
            kept |= alike & (digits > digit)
            left = left - (down_to.gather(1, digit) - counts.gather(1, digit))
            alike &= digits == digit
        # Of equals those of the first processes, of one process's the first features.
        equals = DTensor.from_local(alike.sum(1, keepdim=True), self.mesh, [Shard(1)]).full_tensor()
        before = equals[:, : self.mesh.get_local_rank()].sum(1, keepdim=True)
        return kept | (alike & (before + alike.cumsum(1) <= left))


class _AbsTopKOfAll(_TopKOfAll):
    """The k pre-activations of every token that are farthest from 0, over the features of all processes."""

    def _own(self, n_features: int) -> Selection:
        return AbsTopK(min(self.k, n_features))

    def screened(self, screen: Screen) -> None:
        return None

    def _are_kept(self, offered: Entries, n_features: int) -> Tensor:
        return super()._are_kept(replace(offered, pre=offered.pre.abs()), n_features)


class _BatchTopKOfAll(_OfAll):
    """The k·N largest positive pre-activations of the whole batch over the features of all processes."""

    def _own(self, n_features: int) -> Selection:
        return BatchTopK(self.k)

    def _are_kept(self, offered: Entries, n_features: int) -> Tensor:
        budget = torch.tensor(self.k * len(offered.per_token), device=offered.pre.device)
        bits = offered.pre.float().view(torch.int32)
        upper, lower = bits >> _LOW_BITS, bits & ((1 << _LOW_BITS) - 1)
        digit, left, _ = self._reached(upper, 1 << (_BITS - _LOW_BITS), budget)
        within = upper == digit
        low_digit, left, equal = self._reached(lower[within], 1 << _LOW_BITS, left)
        above = (upper > digit) | (within & (lower > low_digit))
        ties = within & (lower == low_digit)
        if equal > left:  # the same question and answer in every process
            ties[ties.clone()] = self._are_first(offered, ties, n_features, int(equal), int(left))
        return above | ties

    def _reached(self, digits: Tensor, size: int, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The digit down to which all processes' digits are as many as wanted, or 0.

        Returns:
            The digit; how many of its own are wanted; how many there are.
        """
        counts = DTensor.from_local(torch.bincount(digits, minlength=size), self.mesh, [Partial()]).full_tensor()
        down_to = counts.flip(0).cumsum(0).flip(0)
        digit = (torch.count_nonzero(down_to >= wanted) - 1).clamp(min=0)
        return digit, wanted - (down_to[digit] - counts[digit]), counts[digit]

    def _are_first(self, offered: Entries, ties: Tensor, n_features: int, equal: int, wanted: int) -> Tensor:
        """(ties,) bool: which of this process's equals are among the first: by token, then by feature."""
        width = n_features * self.mesh.size()
        place = offered.tokens[ties] * width + self.mesh.get_local_rank() * n_features + offered.features[ties]
        padded = torch.cat([place, place.new_full((equal - len(place),), torch.iinfo(torch.int64).max)])
        everyone = DTensor.from_local(padded, self.mesh, [Shard(0)]).full_tensor()
        return place <= everyone.kthvalue(wanted).values
