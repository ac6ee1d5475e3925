"""Rules that say which entries are active, from the pre-activations h of a chunk of tokens.

A rule sees chunks so that the N × n pre-activations never have to exist at once; `BatchTopK`, whose choice spans the
whole batch, collects candidates from every chunk and cuts once at the end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hfsae.functional.kernels import serves
from hfsae.functional.patterns import SparsePattern

# Calls its argument with each chunk's pre-activations, in order; may be run again.
ForEachChunk = Callable[[Callable[[Tensor], None]], None]


class Selection(Protocol):
    """A rule that turns pre-activations into a pattern."""

    def expected_per_token(self, n_features: int) -> int | None:
        """Entries per token where that is known before looking, else None."""
        ...

    def mask(self, pre: Tensor) -> Tensor:
        """(N, n) bool from all pre-activations at once: what the dense path uses."""
        ...

    def select(self, for_each_chunk: ForEachChunk, n_features: int) -> SparsePattern:
        """The same entries, from chunks."""
        ...


@dataclass(frozen=True)
class TopK:
    """The k largest positive pre-activations of every token (Gao et al. 2024, arXiv:2406.04093)."""

    k: int

    def expected_per_token(self, n_features: int) -> int | None:
        return self.k

    def mask(self, pre: Tensor) -> Tensor:
        indices = _largest(pre, self.k)
        return torch.zeros_like(pre, dtype=torch.bool).scatter_(-1, indices, True)

    def select(self, for_each_chunk: ForEachChunk, n_features: int) -> SparsePattern:
        chunks: list[Tensor] = []
        for_each_chunk(lambda pre: chunks.append(_largest(pre, self.k)))
        features = torch.cat(chunks)
        per_token = torch.full((features.shape[0],), self.k, device=features.device)
        return SparsePattern(features.flatten(), per_token, n_features)


@dataclass(frozen=True)
class GroupMax:
    """The largest pre-activation of each of k groups of neighbouring features (EleutherAI's sparsify)."""

    k: int

    def expected_per_token(self, n_features: int) -> int | None:
        return self.k

    def mask(self, pre: Tensor) -> Tensor:
        return torch.zeros_like(pre, dtype=torch.bool).scatter_(-1, self._largest(pre), True)

    def select(self, for_each_chunk: ForEachChunk, n_features: int) -> SparsePattern:
        chunks: list[Tensor] = []
        for_each_chunk(lambda pre: chunks.append(self._largest(pre)))
        features = torch.cat(chunks)
        per_token = torch.full((features.shape[0],), self.k, device=features.device)
        return SparsePattern(features.flatten(), per_token, n_features)

    def _largest(self, pre: Tensor) -> Tensor:
        """(N, k) indices."""
        first = torch.arange(0, pre.shape[-1], pre.shape[-1] // self.k, device=pre.device)
        return first + pre.unflatten(-1, (self.k, -1)).argmax(-1)


@dataclass(frozen=True)
class Above:
    """Every pre-activation above a threshold: a number, or a tensor () or (n,)."""

    threshold: Tensor | float

    def expected_per_token(self, n_features: int) -> int | None:
        return None

    def mask(self, pre: Tensor) -> Tensor:
        return pre > self.threshold

    def select(self, for_each_chunk: ForEachChunk, n_features: int) -> SparsePattern:
        features, per_token = [], []

        def collect(pre: Tensor) -> None:
            tokens, active = self.mask(pre).nonzero(as_tuple=True)
            features.append(active)
            per_token.append(torch.bincount(tokens, minlength=pre.shape[0]))

        for_each_chunk(collect)
        return SparsePattern(torch.cat(features), torch.cat(per_token), n_features)


@dataclass(frozen=True)
class BatchTopK:
    """The k·N largest positive pre-activations of the whole batch (Bussmann et al. 2024, arXiv:2412.06410)."""

    k: int

    def expected_per_token(self, n_features: int) -> int | None:
        return self.k

    def mask(self, pre: Tensor) -> Tensor:
        positive = pre.clamp(min=0).flatten()
        chosen = positive.topk(min(self.k * pre.shape[0], positive.numel()), sorted=False).indices
        mask = torch.zeros_like(positive, dtype=torch.bool)
        mask[chosen] = True
        return mask.view_as(pre) & (pre > 0)

    def select(self, for_each_chunk: ForEachChunk, n_features: int) -> SparsePattern:
        """Cuts once over every token's largest candidates; exact, since a token whose candidates all pass is redone.

        A global top-k over N × n numbers would read them many times. Four times k candidates a token nearly always
        hold all that will be chosen; where the smallest candidate of some token still passes the cut, more are taken.
        """
        per_token = min(4 * self.k, n_features)
        while True:
            values, features = self._candidates(for_each_chunk, per_token)
            chosen = self._cut(values)
            saturated = chosen.all(dim=1).any() if per_token < n_features else False
            if not saturated:
                return SparsePattern(features[chosen], chosen.sum(1), n_features)
            per_token = min(4 * per_token, n_features)

    @staticmethod
    def _candidates(for_each_chunk: ForEachChunk, per_token: int) -> tuple[Tensor, Tensor]:
        values, features = [], []

        def collect(pre: Tensor) -> None:
            largest = _largest(pre, per_token)
            values.append(pre.gather(1, largest))
            features.append(largest)

        for_each_chunk(collect)
        return torch.cat(values), torch.cat(features)

    def _cut(self, values: Tensor) -> Tensor:
        flat = values.clamp(min=0).flatten()
        indices = flat.topk(min(self.k * values.shape[0], flat.numel()), sorted=False).indices
        chosen = torch.zeros_like(flat, dtype=torch.bool)
        chosen[indices] = True
        return chosen.view_as(values) & (values > 0)


def _largest(pre: Tensor, k: int) -> Tensor:
    """The features of each token's k largest pre-activations: (N, k)."""
    if serves(pre):
        from hfsae.functional.kernels.largest import largest

        return largest(pre, k)
    return pre.topk(k, dim=-1, sorted=False).indices
