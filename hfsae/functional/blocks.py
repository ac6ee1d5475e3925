"""Chains of elementwise operations over large tensors, block by block.

Each operation on an (N, n) tensor by itself reads it from memory and writes its result there. A block's results are
read again while they are still in the cache, so a chain of operations costs a CPU one pass.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# Values in a block. The elementwise chains of a JumpReLU's step (n = 12288, N = 4096, two threads) take 152, 90 and
# 125 ms in blocks of 2 ** 16, 2 ** 18 and 2 ** 20 values: too small to be worth a call, too large for the cache.
_BLOCK = 1 << 18


def in_blocks(first: Tensor, *others: Tensor, most_rows: int | None = None) -> Iterator[tuple[Tensor, ...]]:
    """Views of some rows after others of `first`, and of the same rows of every other tensor with as many dimensions.

    Tensors of fewer dimensions, which broadcast along the rows, come whole with each block. Off the CPU everything is
    one block, unless `most_rows` says otherwise.

    Args:
        first: (N, ...).
        *others: (N, ...) like it, or of fewer dimensions.
        most_rows: No block has more rows.

    Example:
        >>> import torch
        >>> from hfsae.functional.blocks import in_blocks
        >>> [len(rows) for rows, bias in in_blocks(torch.ones(5, 2), torch.ones(2), most_rows=2)]
        [2, 2, 1]
    """
    rows = max(len(first), 1)
    if first.device.type == "cpu" and first.numel():
        rows = max(1, _BLOCK * len(first) // first.numel())
    rows = min(rows, most_rows or rows)
    for start in range(0, len(first), rows):
        part = slice(start, start + rows)
        yield first[part], *(other[part] if other.dim() == first.dim() else other for other in others)


def where_positive(values: Tensor, margin: Tensor, out: Tensor | None = None) -> Tensor:
    """The values where the margin is above 0, else 0; both of one shape and type, as is `out`.

    torch has this as the gradient of a threshold: one pass, where flags and a product with them are three.
    """
    if out is None:
        return torch.ops.aten.threshold_backward(values, margin, 0.0)
    return torch.ops.aten.threshold_backward.grad_input(values, margin, 0.0, grad_input=out)


def where_within(values: Tensor, margin: Tensor, reach: float) -> Tensor:
    """The values where −reach < margin < reach, else 0, in one pass: torch has it as the gradient of a hard tanh."""
    return torch.ops.aten.hardtanh_backward(values, margin, -reach, reach)


class SumLike:
    """Adds blocks up to the shape and type of a parameter that was given to `in_blocks`: `total`.

    Where the parameter has as many dimensions as the blocks, each block is its own part of the result.

    Args:
        parameter: (N, ...) like the blocks, or of fewer dimensions.
    """

    def __init__(self, parameter: Tensor):
        self.total = torch.zeros_like(parameter)
        self._rows = 0

    def add(self, block: Tensor) -> None:
        """Takes in the next block."""
        if block.dim() > self.total.dim():
            self.total += block.to(self.total.dtype).sum_to_size(self.total.shape)
        else:
            self.total[self._rows : self._rows + len(block)] = block
            self._rows += len(block)
