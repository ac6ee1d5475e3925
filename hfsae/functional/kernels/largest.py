"""The k largest of every row, reading the rows once.

A row of n pre-activations is cut into groups of g. The k groups with the largest maxima hold the k largest entries.
For an entry outside of them is at most its group's maximum, and the k maxima chosen are all at least that. So one pass
over the rows makes the n/g maxima, and after it only n/g + k·g numbers a row are looked at. That is least for g =
√(n/k): 2,048 of 32,768 for k = 32. `torch.topk` reads a row several times instead, once for every few bits of the cut.

Each of the two selections holds its candidates in registers and finds the k-th largest by its bits, from the highest
down. Of equal ones the first are taken. The encoder's product itself is left to the library, whose matrix kernels are
hard to reach. A product that made the maxima on its way would save the one read.
"""

# Triton annotates kernels as they are inside; what launches one passes plain numbers.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# More candidates than this do not fit into a program's registers; a thread holds 16 of them.
_MOST_CANDIDATES = 8192
_CANDIDATES_OF_A_WARP = 16 * 32
_GROUPS_AT_ONCE = 64


@triton.jit
def _group_maxima(out, rows, wanted, n, n_groups, GROUP: tl.constexpr, GROUPS: tl.constexpr, SOME: tl.constexpr):
    """out[r, j] = the largest of rows[r, j·GROUP : (j + 1)·GROUP]."""
    row = tl.program_id(0).to(tl.int64)
    if SOME:
        if tl.load(wanted + row) == 0:
            return
    groups = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    columns = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    tile = tl.load(rows + row * n + columns, mask=columns < n, other=float("-inf"))
    tl.store(out + row * n_groups + groups, tl.max(tile, axis=1), mask=groups < n_groups)


@triton.jit
def _select(
    out,
    rows,
    groups,
    wanted,
    n,
    k,
    GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
    BITS: tl.constexpr,
    SOME: tl.constexpr,
):
    """out[r] = the columns of the k largest of row r, of those in its chosen groups; without groups of all."""
    row = tl.program_id(0).to(tl.int64)
    if SOME:
        if tl.load(wanted + row) == 0:
            return
    slot = tl.arange(0, SLOTS)
    if GROUP > 0:
        in_reach = slot < k * GROUP
        group = tl.load(groups + row * k + slot // GROUP, mask=in_reach, other=0)
        column = group * GROUP + slot % GROUP
        live = in_reach & (column < n)
    else:
        column = slot.to(tl.int64)
        live = slot < n
    value = tl.load(rows + row * n + column, mask=live, other=0.0).to(tl.float32)
    # Bits that are ordered as the numbers are: of negative ones all are turned round, of others the sign.
    bits = value.to(tl.uint32, bitcast=True)
    key = tl.where((bits >> 31) > 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    key = tl.where(live, key, 0) >> (32 - BITS)
    cut = tl.zeros([1], tl.uint32)
    for bit in tl.static_range(BITS):
        higher = cut | (1 << (BITS - 1 - bit))
        enough = tl.sum((key >= higher).to(tl.int32), axis=0) >= k
        cut = tl.where(enough, higher, cut)
    above = key > cut
    equal = (key == cut) & live
    places_left = k - tl.sum(above.to(tl.int32), axis=0)
    chosen = above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= places_left))
    place = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(out + row * k + place, column, mask=chosen)


def largest(rows: Tensor, k: int, wanted: Tensor | None = None) -> Tensor:
    """The columns of the k largest numbers of every row: (N, k) int64, in no order; of equal numbers any.

    Args:
        rows: (N, n) of bfloat16, float16 or float32, without NaN.
        k: How many, at most n.
        wanted: (N,) bool, which rows are looked at, the others' columns being any; None for all.
    """
    n_rows, n = rows.shape
    if not n_rows or not k:
        return torch.empty(n_rows, k, dtype=torch.int64, device=rows.device)
    rows = rows.contiguous()
    group = group_size(n, k)
    n_groups = triton.cdiv(n, group)
    if n_groups <= k:
        return _selected(rows, k, wanted) if n <= _MOST_CANDIDATES else rows.topk(k, dim=-1, sorted=False).indices
    if max(n_groups, k * group) > _MOST_CANDIDATES:
        return rows.topk(k, dim=-1, sorted=False).indices
    maxima = rows.new_empty(n_rows, n_groups)
    with torch.cuda.device_of(rows):
        _group_maxima[(n_rows, triton.cdiv(n_groups, _GROUPS_AT_ONCE))](
            maxima,
            rows,
            rows if wanted is None else wanted,
            n,
            n_groups,
            GROUP=group,
            GROUPS=_GROUPS_AT_ONCE,
            SOME=wanted is not None,
        )
    return _selected(rows, k, wanted, _selected(maxima, k, wanted), group)


def group_size(n: int, k: int) -> int:
    """The power of two nearest to √(n/k), at least 2: there the fewest numbers are looked at twice."""
    return max(2, 1 << round(math.log2(n / k) / 2))


def _selected(rows: Tensor, k: int, wanted: Tensor | None, groups: Tensor | None = None, group: int = 0) -> Tensor:
    n_rows, n = rows.shape
    slots = triton.next_power_of_2(n if groups is None else k * group)
    # Where rows are left out their columns have to be some all the same.
    make = torch.empty if wanted is None else torch.zeros
    out = make(n_rows, k, dtype=torch.int64, device=rows.device)
    with torch.cuda.device_of(rows):
        _select[(n_rows,)](
            out,
            rows,
            out if groups is None else groups,
            rows if wanted is None else wanted,
            n,
            k,
            GROUP=group,
            SLOTS=slots,
            BITS=16 if rows.dtype == torch.bfloat16 else 32,
            SOME=wanted is not None,
            num_warps=max(4, slots // _CANDIDATES_OF_A_WARP),
        )
    return out
