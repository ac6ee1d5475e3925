"""Patterns of several groups of features side by side as one pattern, which remembers its parts.

A cross-layer transcoder selects the features of every layer from activations of their own. Each part keeps its own
products; the whole is what an objective works on.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae.functional.patterns import DensePattern, Pattern, SparsePattern
from hfsae.functional.traced import is_traced


def stacked(parts: Sequence[tuple[Pattern, Tensor]]) -> tuple[Pattern, Tensor]:
    """The entries of all parts as those of one pattern, part after part, and their values.

    Args:
        parts: Patterns of the same N tokens, each with a value for every entry.

    Returns:
        A pattern of as many features as the parts have together, and the values at its entries; differentiable.
        Dense where all parts are.

    Example:
        >>> import torch
        >>> from hfsae.functional import DensePattern
        >>> from hfsae.functional.stacked import stacked
        >>> parts = [(DensePattern.from_mask(values > 0), values) for values in (torch.eye(2), torch.ones(2, 1))]
        >>> stacked(parts)[1]
        tensor([[1., 0., 1.],
                [0., 1., 1.]])
    """
    if all(isinstance(pattern, DensePattern) for pattern, _ in parts):
        return DenseStack([pattern for pattern, _ in parts]), torch.cat([values for _, values in parts], 1)  # type: ignore
    sparse = [_as_sparse(pattern, values) for pattern, values in parts]
    whole = SparseStack([pattern for pattern, _ in sparse])
    return whole, whole.joined([values for _, values in sparse])


def _as_sparse(pattern: Pattern, values: Tensor) -> tuple[SparsePattern, Tensor]:
    if isinstance(pattern, SparsePattern):
        return pattern, values
    assert isinstance(pattern, DensePattern)
    return SparsePattern.from_mask(pattern.mask), values[pattern.mask]


class DenseStack(DensePattern):
    """Dense patterns side by side."""

    def __init__(self, parts: Sequence[DensePattern]):
        pre = torch.cat([part._pre for part in parts], 1)
        super().__init__(pre, lambda _: torch.cat([part.mask for part in parts], 1))


class SparseStack(SparsePattern):
    """Sparse patterns side by side: of every token the entries of the first part, then those of the next.

    Args:
        parts: Patterns of the same tokens.
    """

    def __init__(self, parts: Sequence[SparsePattern]):
        self.parts = list(parts)
        per_token = torch.stack([part.per_token for part in parts])
        total = per_token.sum(0)
        # Of every part and token, the entry that its first one becomes, less the entry that this one was.
        start = total.cumsum(0) - total + per_token.cumsum(0) - per_token
        moved = [own - part.offsets[:-1] for own, part in zip(start, parts, strict=True)]
        place = [
            shift.index_select(0, part.tokens) + torch.arange(len(part.features), device=shift.device)
            for shift, part in zip(moved, parts, strict=True)
        ]
        self._place = torch.cat(place)
        self._came_from = torch.empty_like(self._place)
        self._came_from[self._place] = torch.arange(len(self._place), device=self._place.device)
        sizes = [part.n_features for part in parts]
        shifted = [part.features + sum(sizes[:index]) for index, part in enumerate(parts)]
        super().__init__(torch.cat(shifted).index_select(0, self._came_from), total, sum(sizes))

    def joined(self, values: Sequence[Tensor]) -> Tensor:
        """The values at the entries of every part as those at the entries of the whole."""
        return _Permuted.apply(torch.cat(list(values)), self._came_from, self._place)  # type: ignore[return-value]

    def blocks(self, values: Tensor, sizes: Sequence[int]) -> list[tuple[Pattern, Tensor]]:
        if [part.n_features for part in self.parts] != list(sizes):
            return super().blocks(values, sizes)
        ordered: Tensor = _Permuted.apply(values, self._place, self._came_from)  # type: ignore[assignment]
        counts = [len(part.features) for part in self.parts]
        return list(zip(self.parts, ordered.split(counts), strict=True))


class _Permuted(torch.autograd.Function):
    """`values[order]`, an order in which each comes once; its gradient is the other way round, without a sum."""

    @staticmethod
    def forward(ctx, values: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return values.index_select(0, order)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad.index_select(0, ctx.back), None, None


class _SumOfEnds(torch.autograd.Function):
    """(N, d) the sum of tensors of which each has the last columns of the first alone."""

    @staticmethod
    def forward(ctx, *parts: Tensor) -> Tensor:
        ctx.widths = [part.shape[1] for part in parts]
        total = parts[0].clone()
        for part in parts[1:]:
            total[:, -part.shape[1] :] += part
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return tuple(grad[:, -width:] for width in ctx.widths)


def sum_of_ends(parts: Sequence[Tensor]) -> Tensor:
    """The sum of (N, d) and of tensors that have its last columns alone: what layers write into all later ones.

    Args:
        parts: (N, width) each, the first the widest, no width 0.

    Example:
        >>> import torch
        >>> from hfsae.functional.stacked import sum_of_ends
        >>> sum_of_ends([torch.ones(1, 3), torch.ones(1, 2), torch.ones(1, 1)])
        tensor([[1., 2., 3.]])
    """
    if is_traced(parts[0]):
        width = parts[0].shape[1]
        return torch.stack([F.pad(part, (width - part.shape[1], 0)) for part in parts]).sum(0)
    return _SumOfEnds.apply(*parts)  # type: ignore[return-value]
