"""Rules that say which entries are active, from the pre-activations h of one chunk of tokens after another.

A rule sees chunks so that the N × n pre-activations never have to exist at once. On a CPU every rule works alike: it
finds a bound that lets little more through than it wants, takes what exceeds it, and trims that. Finding the few that
exceed a bound reads h once; a top-k over whole rows, or a global one over N × n numbers, reads it many times.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae.functional.kernels import serves
from hfsae.functional.patterns import SparsePattern

# Gives the pre-activations (tokens, n) of each chunk in order, and again when asked; the next may lie in its memory.
Chunks = Callable[[], Iterator[Tensor]]

# A token's features are bounded from groups of them: so many groups for each feature that is wanted.
_GROUPS_PER_K = 4
# A batch's bound is guessed from so many of its first chunk's pre-activations, and lets through this many times k.
_SAMPLE = 1 << 16
_SLACK = 2


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


@dataclass
class _Entries:
    """Some entries of a chunk: how many each token has, their features, their pre-activations."""

    per_token: Tensor
    features: Tensor
    pre: Tensor

    @classmethod
    def where(cls, mask: Tensor, pre: Tensor) -> "_Entries":
        """The entries at which a mask is True, of which there should be few."""
        tokens, features = _few_nonzero(mask)
        return cls(torch.bincount(tokens, minlength=len(pre)), features, pre[tokens, features])

    @classmethod
    def above(cls, cut: Tensor | float, pre: Tensor) -> "_Entries":
        """The entries whose pre-activations exceed a cut: a number, or a tensor () or (n,)."""
        if serves(pre):
            from hfsae.functional.kernels.above import above

            return cls(*above(pre, cut))
        return cls.where(pre > cut, pre)

    @classmethod
    def as_many_each(cls, features: Tensor, pre: Tensor) -> "_Entries":
        """From (tokens, k) features and their pre-activations."""
        per_token = torch.full((len(features),), features.shape[1], device=features.device)
        return cls(per_token, features.flatten(), pre.flatten())

    @classmethod
    def joined(cls, parts: list["_Entries"]) -> "_Entries":
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("per_token", "features", "pre")))

    def kept(self, keep: Tensor) -> "_Entries":
        """Those that a mask (entries,) keeps."""
        before = F.pad(keep.cumsum(0), (1, 0))[F.pad(self.per_token.cumsum(0), (1, 0))]
        return _Entries(before.diff(), self.features[keep], self.pre[keep])

    def pattern(self, n_features: int) -> tuple[SparsePattern, Tensor]:
        return SparsePattern(self.features, self.per_token, n_features), self.pre


def _few_nonzero(mask: Tensor) -> tuple[Tensor, Tensor]:
    """`mask.nonzero()` of an (N, n) mask in which little is True: looks at eight flags at a time."""
    if mask.shape[1] % 8 or not mask.is_contiguous() or not mask.numel():
        return mask.nonzero(as_tuple=True)  # type: ignore[return-value]
    words = mask.view(torch.int64)
    tokens, word = words.nonzero(as_tuple=True)
    hit, flag = words[tokens, word].view(torch.bool).view(-1, 8).nonzero(as_tuple=True)
    return tokens[hit], 8 * word[hit] + flag


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of every token (Gao et al. 2024, arXiv:2406.04093)."""

    k: int

    def load(self, look: Callable[[], Tensor]) -> float:
        return self.k

    def mask(self, pre: Tensor) -> Tensor:
        return torch.zeros_like(pre, dtype=torch.bool).scatter_(-1, _largest(pre, self.k), True)

    def select(self, chunks: Chunks, n_features: int) -> tuple[SparsePattern, Tensor]:
        return _Entries.joined([self._entries(pre) for pre in chunks()]).pattern(n_features)

    def _entries(self, pre: Tensor) -> _Entries:
        features = _largest(pre, self.k)
        return _Entries.as_many_each(features, pre.gather(1, features))


@dataclass(frozen=True)
class GroupMax:
    """The largest pre-activation of each of k groups of neighbouring features (EleutherAI's sparsify)."""

    k: int

    def load(self, look: Callable[[], Tensor]) -> float:
        return self.k

    def mask(self, pre: Tensor) -> Tensor:
        return torch.zeros_like(pre, dtype=torch.bool).scatter_(-1, self._largest(pre), True)

    def select(self, chunks: Chunks, n_features: int) -> tuple[SparsePattern, Tensor]:
        return _Entries.joined([self._entries(pre) for pre in chunks()]).pattern(n_features)

    def _entries(self, pre: Tensor) -> _Entries:
        features = self._largest(pre)
        return _Entries.as_many_each(features, pre.gather(1, features))

    def _largest(self, pre: Tensor) -> Tensor:
        """(N, k) indices."""
        first = torch.arange(0, pre.shape[-1], pre.shape[-1] // self.k, device=pre.device)
        return first + pre.unflatten(-1, (self.k, -1)).argmax(-1)


class Elementwise:
    """A rule that looks at every pre-activation alone: a subclass says by `mask` which are entries."""

    def load(self, look: Callable[[], Tensor]) -> float:
        pre = look()
        return torch.count_nonzero(self.mask(pre)).item() / max(1, len(pre))

    def mask(self, pre: Tensor) -> Tensor:
        raise NotImplementedError("abstract: a rule says which pre-activations are entries")

    def select(self, chunks: Chunks, n_features: int) -> tuple[SparsePattern, Tensor]:
        return _Entries.joined([self._entries(pre) for pre in chunks()]).pattern(n_features)

    def _entries(self, pre: Tensor) -> _Entries:
        return _Entries.where(self.mask(pre), pre)


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

    def mask(self, pre: Tensor) -> Tensor:
        return pre > self._cut

    def _entries(self, pre: Tensor) -> _Entries:
        return _Entries.above(self._cut, pre)


@dataclass(frozen=True)
class BatchTopK:
    """The k·N largest positive pre-activations of the whole batch (Bussmann et al. 2024, arXiv:2412.06410)."""

    k: int

    def load(self, look: Callable[[], Tensor]) -> float:
        return self.k

    def mask(self, pre: Tensor) -> Tensor:
        positive = pre.fmax(pre.new_zeros(())).flatten()  # NaN is 0 here: it takes no place from others
        chosen = positive.topk(min(self.k * pre.shape[0], positive.numel()), sorted=False).indices
        mask = torch.zeros_like(positive, dtype=torch.bool)
        mask[chosen] = True
        return mask.view_as(pre) & (pre > 0)

    def select(self, chunks: Chunks, n_features: int) -> tuple[SparsePattern, Tensor]:
        """Guesses a bound, takes what exceeds it, cuts that once; exact, since too little is noticed and made good."""
        wanted = _SLACK * self.k / n_features
        while True:
            bound, parts = None, []
            for pre in chunks():
                if bound is None:
                    bound = _exceeded_by(wanted, pre).clamp(min=0)
                parts.append(_Entries.above(bound, pre))
            found = _Entries.joined(parts)
            budget = self.k * len(found.per_token)
            if len(found.pre) > budget:
                keep = torch.zeros_like(found.features, dtype=torch.bool)
                keep[found.pre.topk(budget, sorted=False).indices] = True
                return found.kept(keep).pattern(n_features)
            if len(found.pre) == budget or bound is None or bound == 0:
                return found.pattern(n_features)
            wanted *= 4 * _SLACK


def _largest(pre: Tensor, k: int) -> Tensor:
    """The features of each token's k largest pre-activations: (N, k)."""
    if serves(pre):
        from hfsae.functional.kernels.largest import largest

        return largest(pre, k)
    found = _largest_from_bounds(pre, k) if pre.device.type == "cpu" else None
    return pre.topk(k, dim=-1, sorted=False).indices if found is None else found


def _largest_from_bounds(pre: Tensor, k: int) -> Tensor | None:
    """The same from a bound on each token's k-th largest; None where that does not pay.

    The k-th largest of the maxima of groups of features is at most the k-th largest of them all, and with four groups
    a feature wanted little else exceeds it.
    """
    group = pre.shape[1] // (_GROUPS_PER_K * k)
    if group < 4 or not len(pre):
        return None
    whole_groups = pre[:, : pre.shape[1] // group * group].unflatten(1, (group, -1))
    bound = whole_groups.amax(1).topk(k, sorted=False).values.amin(1, keepdim=True)
    found = _Entries.where(pre >= bound, pre)
    if found.per_token.amin() < k:  # a NaN compares with nothing
        return None
    token = torch.arange(len(pre)).repeat_interleave(found.per_token)
    place = torch.arange(len(token)) - F.pad(found.per_token.cumsum(0), (1, 0))[token]
    shape = (len(pre), int(found.per_token.amax()))
    candidates = pre.new_full(shape, -torch.inf).index_put_((token, place), found.pre)
    features = found.features.new_zeros(shape).index_put_((token, place), found.features)
    return features.gather(1, candidates.topk(k, sorted=False).indices)


def _exceeded_by(share: float, pre: Tensor) -> Tensor:
    """A value that about such a share of the numbers exceeds; −inf where it is all of them."""
    sample = pre.flatten()[:: max(1, pre.numel() // _SAMPLE) | 1]
    above = round(share * len(sample))
    if above >= len(sample):
        return pre.new_full((), -torch.inf)
    return sample.float().kthvalue(len(sample) - above).values.to(pre.dtype)
