"""The entries that exceed a cut, without a mask of all: one pass counts them, one writes them down.

A row is cut into blocks, a program each. Its block's count says where a program may write, and one whose block has
nothing ends at once.
"""

# Triton annotates kernels as they are inside; what launches one passes plain numbers.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048


@triton.jit
def _exceeding(rows, cut, row, columns, n, EACH: tl.constexpr):
    """The row's numbers in these columns, and which of them exceed the cut; there is one cut, or one EACH column.

    A row that holds NaN keeps its first column, which is NaN in every product of what is not a number.
    """
    inside = columns < n
    value = tl.load(rows + row * n + columns, mask=inside, other=float("-inf"))
    bound = tl.load(cut + columns, mask=inside, other=float("inf")) if EACH else tl.load(cut)
    wide = value.to(tl.float32)
    return value, inside & ((wide > bound) | ((wide != wide) & (columns == 0)))


@triton.jit
def _count(out, rows, cut, n, blocks, EACH: tl.constexpr, BLOCK: tl.constexpr):
    """out[r, b] = how many numbers of block b of row r exceed the cut."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    _, found = _exceeding(rows, cut, row, block * BLOCK + tl.arange(0, BLOCK), n, EACH)
    tl.store(out + row * blocks + block, tl.sum(found.to(tl.int32), axis=0).to(tl.int64))


@triton.jit
def _write(out, features, rows, cut, offsets, n, blocks, EACH: tl.constexpr, BLOCK: tl.constexpr):
    """The numbers above the cut to `out` and their columns to `features`, block after block."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    place = tl.load(offsets + row * blocks + block)
    if place == tl.load(offsets + row * blocks + block + 1):
        return
    columns = block * BLOCK + tl.arange(0, BLOCK)
    value, found = _exceeding(rows, cut, row, columns, n, EACH)
    to = place + tl.cumsum(found.to(tl.int32), axis=0) - 1
    tl.store(out + to, value, mask=found)
    tl.store(features + to, columns.to(tl.int64), mask=found)


def above(rows: Tensor, cut: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """What exceeds a cut. Waits for the device, which alone knows how much that is.

    Args:
        rows: (N, n) of bfloat16, float16 or float32; NaN exceeds every cut in column 0, and none elsewhere.
        cut: A number, or a tensor () or (n,), compared in float32.

    Returns:
        How many each row has (N,) int64, their columns (entries,) int64, row by row in ascending order, and the
        numbers themselves (entries,).
    """
    n_rows, n = rows.shape
    rows = rows.contiguous()
    bound = torch.as_tensor(cut, dtype=torch.float32, device=rows.device).contiguous()
    blocks = triton.cdiv(n, _BLOCK)
    options = {"EACH": bound.dim() == 1, "BLOCK": min(_BLOCK, triton.next_power_of_2(n))}
    per_block = torch.zeros(n_rows * blocks + 1, dtype=torch.int64, device=rows.device)
    if n_rows:
        with torch.cuda.device_of(rows):
            _count[(n_rows, blocks)](per_block[1:], rows, bound, n, blocks, **options)
    offsets = per_block.cumsum(0)
    entries = int(offsets[-1])
    values, features = rows.new_empty(entries), offsets.new_empty(entries)
    if entries:
        with torch.cuda.device_of(rows):
            _write[(n_rows, blocks)](values, features, rows, bound, offsets, n, blocks, **options)
    return offsets[::blocks].diff(), features, values
