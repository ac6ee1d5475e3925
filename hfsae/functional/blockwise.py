"""What consecutive blocks of features write, each by itself."""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import accumulate

import torch
from torch import Tensor

from hfsae.functional.kernels import serves
from hfsae.functional.patterns import Pattern, SparsePattern


def decode_blocks(pattern: Pattern, values: Tensor, rows: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Σ over a token's entries in each block of value × row, block after block; none on a CPU before it is asked for.

    Differentiable in values and rows.

    Args:
        pattern: The entries.
        values: Values at them.
        rows: (n, d).
        sizes: How many features each block has, n in all.

    Returns:
        (N, d) for each block.

    Example:
        >>> import torch
        >>> from hfsae.functional import SparsePattern
        >>> from hfsae.functional.blockwise import decode_blocks
        >>> pattern = SparsePattern(torch.tensor([0, 2]), torch.tensor([2]), n_features=3)
        >>> rows = torch.tensor([[1.0], [10.0], [100.0]])
        >>> [written.tolist() for written in decode_blocks(pattern, torch.tensor([2.0, 3.0]), rows, [1, 2])]
        [[[2.0]], [[300.0]]]
    """
    if isinstance(pattern, SparsePattern) and serves(values, rows):
        return iter(_at_once(pattern, values, rows, sizes))
    parts = zip(pattern.blocks(values, sizes), rows.split(list(sizes)), strict=True)
    return (block.decode(own, own_rows) for (block, own), own_rows in parts)


def _at_once(pattern: SparsePattern, values: Tensor, rows: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Each token's part of a block as a token of its own: shapes do not tell how much is active in a block."""
    ends = [*accumulate(sizes)][:-1]
    block = reduce(torch.add, [pattern.features >= end for end in ends], torch.zeros_like(pattern.features))
    ordered, order = (pattern.tokens * len(sizes) + block).sort(stable=True)
    bounds = torch.arange(pattern.n_tokens * len(sizes) + 1, device=ordered.device)
    per_part = torch.searchsorted(ordered, bounds).diff()
    parts = SparsePattern(pattern.features.index_select(0, order), per_part, pattern.n_features)
    written = parts.decode(values.index_select(0, order), rows)
    return written.unflatten(0, (pattern.n_tokens, len(sizes))).unbind(1)
