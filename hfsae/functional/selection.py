"""Rules that say which entries are active, from the pre-activations h of one chunk of tokens after another.

A rule sees chunks so that the N × n pre-activations never have to exist at once. On a CPU every rule works alike. It
finds a bound that lets little more through than it wants, takes what exceeds it, and trims that. To find the few that
exceed a bound reads h once. A top-k over whole rows, or a global one over N × n numbers, reads it many times. Where
the CPU has units for it, h is first seen in bfloat16 (`hfsae.functional.screening`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from hfsae.functional.entries import Entries
from hfsae.functional.kernels import serves
from hfsae.functional.patterns import SparsePattern
from hfsae.functional.screening import Candidates, Screen
from hfsae.functional.traced import is_traced

# Gives the pre-activations (tokens, n) of each chunk in order, and again when asked; the next may lie in its memory.
Chunks = Callable[[], Iterator[Tensor]]

# A token's features are bounded from groups of them: so many groups for each feature that is wanted.
_GROUPS_PER_K = 4
# Of fewer pre-activations torch's own top-k takes less time than bounds do (one thread, k = 32: one token of 2,048
# features 16 µs for 131, of 12,288 features 40 for 135; four tokens of 12,288 132 for 160).
_BOUNDS_PAY_FROM = 1 << 16
# Nor do bounds from smaller groups: the maxima are hardly fewer than the features (one thread, 4,096 tokens, the 128
# largest of 512: 63 ms, 39 by the other way; of 2,048: 91 and 130).
_LEAST_GROUP = 4
# A batch's bound is guessed from so many of its first chunk's pre-activations, and lets through this many times k.
_SAMPLE = 1 << 16
_SLACK = 2


def refuse_impossible_k(k: int, n_features: int) -> None:
    """Refuses a number of active features that a token of so many features cannot have.

    Raises:
        ValueError: Says what k may be.
    """
    if not 1 <= k <= n_features:
        raise ValueError(f"k must be between 1 and n_features={n_features}, got {k}.")


class Selection(Protocol):
    """A rule that turns pre-activations into a pattern."""

    def load(self, look: Callable[[], Tensor]) -> float:
        """Entries a token that the sparse products work on; `look()` gives the pre-activations of some tokens."""
        ...

    def mask(self, pre: Tensor) -> Tensor:
        """(N, n) bool from all pre-activations at once: what the dense path uses."""
        ...

    def select(self, chunks: Chunks, n_features: int) -> tuple[SparsePattern, Tensor]:
        """The same entries from chunks, and their pre-activations (entries,)."""
        ...


@runtime_checkable
class Screened(Selection, Protocol):
    """A rule that can also select from bfloat16 pre-activations and few float32 ones."""

    def screened(self, screen: Screen) -> tuple[SparsePattern, Tensor] | None:
        """What `select` would give; None where it has to be asked."""
        ...


@dataclass(frozen=True)
class AsManyEach:
    """A rule that picks k features of every token: a subclass says by `chosen` which."""

    k: int

    def load(self, look: Callable[[], Tensor]) -> float:
        return self.k

    def chosen(self, pre: Tensor) -> Tensor:
        """(..., k) the features of each token, from all its pre-activations."""
        raise NotImplementedError("abstract: a rule says which features of a token are entries")

    def mask(self, pre: Tensor) -> Tensor:
        return _where_chosen(pre, self.chosen(pre))

    def select(self, chunks: Chunks, n_features: int) -> tuple[SparsePattern, Tensor]:
        return Entries.joined([self._entries(pre) for pre in chunks()]).pattern(n_features)

    def _entries(self, pre: Tensor) -> Entries:
        features = self.chosen(pre)
        return Entries.as_many_each(features, pre.gather(1, features))


class LargestOfEach(AsManyEach):
    """The k features of every token whose numbers are largest: a subclass says by `ranked` which numbers."""

    def ranked(self, pre: Tensor) -> Tensor:
        """(N, n) what features are ranked by."""
        raise NotImplementedError("abstract: a rule says what features are ranked by")

    def chosen(self, pre: Tensor) -> Tensor:
        return _largest(self.ranked(pre), self.k)

    def mask(self, pre: Tensor) -> Tensor:
        ranked = self.ranked(pre)
        found = _directly(ranked, self.k)
        return _where_chosen(pre, _largest(ranked, self.k)) if found is None else found[0]


class TopK(LargestOfEach):
    """The k largest pre-activations of every token (Gao et al. 2024, arXiv:2406.04093)."""

    def ranked(self, pre: Tensor) -> Tensor:
        return pre

    def screened(self, screen: Screen) -> tuple[SparsePattern, Tensor] | None:
        found = screen.search(
            lambda chunk: chunk.k_th(self.k), lambda found: found.largest_of_each(self.k), self._entries
        )
        return found.pattern(screen.n_features)


class AbsTopK(LargestOfEach):
    """The k of every token that are farthest from 0, on either side of it (arXiv:2510.00404)."""

    def ranked(self, pre: Tensor) -> Tensor:
        return pre.abs()


class GroupMax(AsManyEach):
    """The largest pre-activation of each of k groups of neighbouring features (EleutherAI's sparsify)."""

    def chosen(self, pre: Tensor) -> Tensor:
        first = torch.arange(0, pre.shape[-1], pre.shape[-1] // self.k, device=pre.device)
        return first + pre.unflatten(-1, (self.k, -1)).argmax(-1)


class Elementwise:
    """A rule that looks at every pre-activation alone: a subclass says by `mask` which are entries."""

    def load(self, look: Callable[[], Tensor]) -> float:
        pre = look()
        return torch.count_nonzero(self.mask(pre)).item() / max(1, len(pre))

    def mask(self, pre: Tensor) -> Tensor:
        raise NotImplementedError("abstract: a rule says which pre-activations are entries")

    def at(self, features: Tensor) -> "Elementwise":
        """The rule for some features alone, in their order."""
        return self

    def select(self, chunks: Chunks, n_features: int) -> tuple[SparsePattern, Tensor]:
        return Entries.joined([self._entries(pre) for pre in chunks()]).pattern(n_features)

    def _entries(self, pre: Tensor) -> Entries:
        return Entries.where(self.mask(pre), pre)


@dataclass(frozen=True)
class Above(Elementwise):
    """Every pre-activation above a threshold (a number, or a tensor () or (n,)), or less than `margin` below it.

    Those within the margin have the value 0; their gradient is what a step wants of them.
    """

    threshold: Tensor | float
    margin: float = 0.0

    def load(self, look: Callable[[], Tensor]) -> float:
        pre = look()
        kept = super().load(lambda: pre)
        if not self.margin or pre.device.type != "cpu":
            return kept
        # What is within the margin alone costs about half: three of the four sparse products leave zeros out.
        active = torch.count_nonzero(pre > self.threshold).item() / max(1, len(pre))
        return (active + kept) / 2

    @property
    def _cut(self) -> Tensor | float:
        return self.threshold - self.margin

    def at(self, features: Tensor) -> "Above":
        if not isinstance(self.threshold, Tensor) or not self.threshold.dim():
            return self
        return Above(self.threshold[features], self.margin)

    def mask(self, pre: Tensor) -> Tensor:
        return pre > self._cut

    def screened(self, screen: Screen) -> tuple[SparsePattern, Tensor] | None:
        found = screen.search(lambda chunk: chunk.raised_by, self._decided, self._entries, above=self._cut)
        return found.pattern(screen.n_features)

    def _decided(self, found: Entries) -> Entries:
        cut = self._cut
        if isinstance(cut, Tensor) and cut.dim():
            cut = cut.index_select(0, found.features)
        return found.kept(found.pre > cut)

    def _entries(self, pre: Tensor) -> Entries:
        return Entries.above(self._cut, pre)


@dataclass(frozen=True)
class BatchTopK:
    """The k·N largest positive pre-activations of the whole batch (Bussmann et al. 2024, arXiv:2412.06410)."""

    k: int

    def load(self, look: Callable[[], Tensor]) -> float:
        return self.k

    def mask(self, pre: Tensor) -> Tensor:
        positive = pre.fmax(pre.new_zeros(())).flatten()  # NaN is 0 here: it takes no place from others
        chosen = positive.topk(min(self.k * pre.shape[0], positive.numel()), sorted=False)
        mask = torch.zeros_like(positive, dtype=torch.bool)
        if _equal_in_order(pre):
            # Of equal ones the first, as on the sparse path.
            least = chosen.values.amin()
            torch.gt(positive, least, out=mask)
            equal = (positive == least).nonzero()[:, 0]
            mask[equal[: len(chosen.indices) - int(torch.count_nonzero(mask))]] = True
        else:
            mask.scatter_(0, chosen.indices, 1)  # an assignment would bring a flag from the host
        return mask.view_as(pre) & (pre > 0)

    def select(self, chunks: Chunks, n_features: int) -> tuple[SparsePattern, Tensor]:
        """Guesses a bound, takes what exceeds it, cuts that once; exact, since too little is noticed and made good."""
        wanted = _SLACK * self.k / n_features
        while True:
            bound, parts = None, []
            for pre in chunks():
                if bound is None:
                    bound = _exceeded_by(wanted, pre).clamp(min=0)
                parts.append(Entries.above(bound, pre))
            found = Entries.joined(parts)
            budget = self.k * len(found.per_token)
            if len(found.pre) >= budget or bound is None or bound == 0:
                return found.largest(budget).pattern(n_features)
            wanted *= 4 * _SLACK

    def screened(self, screen: Screen) -> tuple[SparsePattern, Tensor] | None:
        """The same with bounds: what is certainly among the largest sets the cut for what may be.

        Tokens of which too much passes are computed in float32 alone, and so are tokens without a bound.
        """
        wanted = _SLACK * self.k / screen.n_features
        budget = self.k * len(screen.x)
        while True:
            level, least, parts, left = None, 0.0, [], []
            for chunk in screen.chunks():
                if level is None:
                    least = chunk.raised_by
                    level = max(_exceeded_by(wanted, chunk.made).item(), least)
                candidates, certain = chunk.reaching(level)
                if screen.is_mostly_left(~certain):
                    return None
                parts.append(candidates)
                left.append(~certain)
            assert level is not None
            found = Candidates.joined(parts)
            rows = torch.cat(left).nonzero()[:, 0]
            alone = screen.alone(rows, partial(Entries.above, max(0.0, _just_below(level - least))))
            lower = torch.cat([found.lower, alone.pre.double() + least])
            if torch.count_nonzero(lower >= level) >= budget:
                level = lower.kthvalue(len(lower) - budget + 1).values
                found = found.kept(found.upper >= level)
            elif level > least:
                wanted *= 4 * _SLACK
                continue
            exact = screen.exact(found.tokens, found.features).with_rows(rows, alone)
            return exact.kept(exact.pre > 0).largest(budget).pattern(screen.n_features)


def _just_below(value: float) -> float:
    """A float32 number that is no larger."""
    return torch.tensor(value, dtype=torch.float32).nextafter(torch.tensor(-torch.inf)).item()


def _where_chosen(pre: Tensor, features: Tensor) -> Tensor:
    """Bool (..., n) like pre-activations, True at the features (..., k) of each token."""
    return torch.zeros_like(pre, dtype=torch.bool).scatter_(-1, features, 1)


@dataclass(frozen=True, eq=False)
class Picked:
    """What another rule has picked already: the same entries, whatever is shown.

    Args:
        features: (entries,) int64, the feature of each entry; those of one token together, tokens in order.
        per_token: (N,) int64, how many entries each token has.
        pre: (entries,), their pre-activations.
        most: How many there can be.
    """

    features: Tensor
    per_token: Tensor
    pre: Tensor
    most: int

    def load(self, look: Callable[[], Tensor]) -> float:
        return len(self.pre) / max(1, len(self.per_token))

    def mask(self, pre: Tensor) -> Tensor:
        pattern, kept = self.select(lambda: iter(()), pre.shape[1])
        return pattern.to_dense(torch.ones_like(kept)) > 0

    def select(self, chunks: Chunks, n_features: int) -> tuple[SparsePattern, Tensor]:
        return SparsePattern(self.features, self.per_token, n_features), self.pre


def _largest(pre: Tensor, k: int) -> Tensor:
    """The features of each token's k largest pre-activations (N, k); on a CPU of equal ones the first features."""
    if not is_traced(pre) and serves(pre):
        from hfsae.functional.kernels.largest import largest

        return largest(pre, k)
    if not _equal_in_order(pre):
        return pre.topk(k, dim=-1, sorted=False).indices
    found = _directly(pre, k)
    return _largest_from_bounds(pre, k, _group(pre, k)) if found is None else found[1].sort(1).values


def _equal_in_order(pre: Tensor) -> bool:
    """Whether of equal pre-activations the first features are picked, as on a CPU."""
    return not is_traced(pre) and pre.device.type == "cpu" and len(pre) > 0


def _group(pre: Tensor, k: int) -> int:
    return pre.shape[1] // (_GROUPS_PER_K * k)


def _bounds_pay(pre: Tensor, k: int) -> bool:
    return pre.numel() >= _BOUNDS_PAY_FROM and _group(pre, k) >= _LEAST_GROUP


def _directly(pre: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """As `_reaching`, on a CPU where that costs less than bounds."""
    return _reaching(pre, k) if _equal_in_order(pre) and not _bounds_pay(pre, k) else None


def _reaching(pre: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """Where each token's k largest are (N, n), and their features (N, k) in no order.

    None where some token's k-th largest equals its next, or is NaN.
    """
    top = pre.topk(k, sorted=False)
    reaching = pre >= top.values.amin(1, keepdim=True)
    return (reaching, top.indices) if (torch.count_nonzero(reaching, dim=1) == k).all() else None


def _largest_from_bounds(pre: Tensor, k: int, group: int) -> Tensor:
    """The same from a bound on each token's k-th largest.

    The k-th largest of the maxima of groups of features is at most the k-th largest of them all, and with four groups
    a feature wanted little else exceeds it.

    Args:
        pre: (N, n).
        k: How many.
        group: So many features make a group.
    """
    looked_at = pre
    if group >= _LEAST_GROUP:
        looked_at = pre[:, : pre.shape[1] // group * group].unflatten(1, (group, -1)).amax(1)
    bound = looked_at.topk(k, sorted=False).values.amin(1, keepdim=True)
    found = Entries.where(pre >= bound, pre)
    spoilt = found.per_token < k  # a NaN compares with nothing
    if not spoilt.any():
        return found.largest_of_each(k).features.view(len(pre), k)
    whole = ~spoilt
    features = found.features.new_empty(len(pre), k)
    features[spoilt] = pre[spoilt].topk(k, sorted=False).indices
    found = found.kept(whole.index_select(0, found.tokens))
    features[whole] = found.largest_of_each(k).features.view(-1, k)
    return features


def _exceeded_by(share: float, pre: Tensor) -> Tensor:
    """A value that about such a share of the numbers exceeds; −inf where it is all of them."""
    sample = pre.flatten()[:: max(1, pre.numel() // _SAMPLE) | 1]
    above = round(share * len(sample))
    if above >= len(sample):
        return pre.new_full((), -torch.inf)
    return sample.float().kthvalue(len(sample) - above).values.to(pre.dtype)
