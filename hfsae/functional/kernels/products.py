"""Products that touch only the entries of a pattern: sums of weighted rows, inner products, sums of values.

The decoder and both weight gradients are the same sum: rows of a table, weighted and added up segment by segment. For
the decoder a segment is a token and the table the decoder. For a weight gradient a segment is a feature, whose entries
one stable sort brings together. The table is then the tokens' gradients or activations.
"""

# Triton annotates kernels as they are inside; what launches one passes plain numbers.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

# Entries of a feature that one program adds up: a feature that fires on thousands of tokens is shared among several.
_LONGEST_SEGMENT = 512
# Entries that are in flight together, and columns of the table that a program is responsible for.
_ENTRIES, _COLUMNS = 8, 256
# What the threads of a warp read at once: 16 bytes each.
_WARP_BYTES = 32 * 16
# Values of a segment that are added at once where there is no table.
_VALUES = 256


@triton.jit
def _sum_rows(out, values, indices, starts, ends, table, width, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    """out[s] = Σ over entries e of segment s: values[e] · table[indices[e]]."""
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    start = tl.load(starts + segment)
    end = tl.load(ends + segment)
    total = tl.zeros([COLUMNS], tl.float32)
    for first in range(start, end, ENTRIES):
        entries = first + tl.arange(0, ENTRIES)
        live = entries < end
        row = tl.load(indices + entries, mask=live, other=0)
        value = tl.load(values + entries, mask=live, other=0.0).to(tl.float32)
        tile = tl.load(
            table + row[:, None] * width + columns[None, :], mask=live[:, None] & inside[None, :], other=0.0
        )
        total += tl.sum(value[:, None] * tile.to(tl.float32), axis=0)
    tl.store(out + segment * width + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _join(out, parts, further, width, COLUMNS: tl.constexpr):
    """out[s] += Σ of the further parts of segment s, where it has any."""
    segment = tl.program_id(0).to(tl.int64)
    first = tl.load(further + segment)
    end = tl.load(further + segment + 1)
    if first == end:
        return
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.load(out + segment * width + columns, mask=inside, other=0.0)
    for part in range(first, end):
        total += tl.load(parts + part * width + columns, mask=inside, other=0.0)
    tl.store(out + segment * width + columns, total, mask=inside)


@triton.jit
def _inner_products(out, features, offsets, tokens, table, width, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    """out[e] = ⟨tokens[t], table[features[e]]⟩ for the entries e of token t."""
    token = tl.program_id(0).to(tl.int64)
    end = tl.load(offsets + token + 1)
    for first in range(tl.load(offsets + token), end, ENTRIES):
        entries = first + tl.arange(0, ENTRIES)
        live = entries < end
        feature = tl.load(features + entries, mask=live, other=0)
        total = tl.zeros([ENTRIES], tl.float32)
        for begin in range(0, width, COLUMNS):
            columns = begin + tl.arange(0, COLUMNS)
            inside = columns < width
            x = tl.load(tokens + token * width + columns, mask=inside, other=0.0).to(tl.float32)
            tile = tl.load(
                table + feature[:, None] * width + columns[None, :], mask=live[:, None] & inside[None, :], other=0.0
            )
            total += tl.sum(tile.to(tl.float32) * x[None, :], axis=1)
        tl.store(out + entries, total.to(out.dtype.element_ty), mask=live)


@triton.jit
def _sum_values(out, values, offsets, VALUES: tl.constexpr):
    """out[s] = Σ of the values of segment s."""
    segment = tl.program_id(0).to(tl.int64)
    end = tl.load(offsets + segment + 1)
    total = tl.zeros([VALUES], tl.float32)
    for first in range(tl.load(offsets + segment), end, VALUES):
        entries = first + tl.arange(0, VALUES)
        total += tl.load(values + entries, mask=entries < end, other=0.0).to(tl.float32)
    tl.store(out + segment, tl.sum(total, axis=0).to(out.dtype.element_ty))


def sum_rows(values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """(segments, d): for each segment Σ value × table[index], in the order of its entries.

    In float32 where values or table are.

    Args:
        values: (entries,).
        indices: (entries,) int64, the row of the table for each entry.
        offsets: (segments + 1,) int64, where the entries of each segment begin and end.
        table: (rows, d).
    """
    out = table.new_empty(len(offsets) - 1, table.shape[1], dtype=torch.promote_types(values.dtype, table.dtype))
    _launch_sum(out, values, indices, offsets[:-1], offsets[1:], table)
    return out


class Parts(NamedTuple):
    """Segments cut into parts that are added up side by side, so that none holds up all others.

    Attributes:
        starts: (segments + further,) where the first parts of all segments begin, and then the further ones.
        ends: (segments + further,) where they end.
        further: (segments + 1,) the further parts of segment s are those from `further[s]` to `further[s + 1]`.
    """

    starts: Tensor
    ends: Tensor
    further: Tensor


def cut(offsets: Tensor, entries: int) -> Parts:
    """Cuts segments at fixed places; how many parts there can be is known without asking the device.

    Args:
        offsets: (segments + 1,) int64, where the entries of each segment begin and end.
        entries: How many there are in all.
    """
    starts, ends = offsets[:-1], offsets[1:]
    count = (ends - starts - 1).clamp_(min=0).div_(_LONGEST_SEGMENT, rounding_mode="floor")
    further = F.pad(count.cumsum(0), (1, 0))
    first_ends = torch.minimum(ends, starts + _LONGEST_SEGMENT)
    if not (most := entries // _LONGEST_SEGMENT):
        return Parts(starts, first_ends, further)
    part = torch.arange(most, device=offsets.device)
    owner = torch.searchsorted(further[1:], part, right=True).clamp_(max=len(starts) - 1)
    begin = starts[owner] + (part - further[owner] + 1) * _LONGEST_SEGMENT
    last = ends[owner]
    # Parts that nobody has begin and end where their owner ends.
    begin = torch.minimum(begin, last)
    return Parts(
        torch.cat([starts, begin]), torch.cat([first_ends, torch.minimum(begin + _LONGEST_SEGMENT, last)]), further
    )


def sum_long_rows(values: Tensor, indices: Tensor, parts: Parts, table: Tensor) -> Tensor:
    """`sum_rows` where a few segments may be much longer than the others: their parts are added up side by side.

    The parts are cut at fixed places and joined in order, so the result has the same bits every time.

    Args:
        values: (entries,).
        indices: (entries,) int64.
        parts: The segments, from `cut`.
        table: (rows, d).
    """
    segments = len(parts.further) - 1
    sums = table.new_empty(len(parts.starts), table.shape[1], dtype=torch.float32)
    _launch_sum(sums, values, indices, parts.starts, parts.ends, table)
    total, further = sums[:segments], sums[segments:]
    if len(further):
        with torch.cuda.device_of(sums):
            _join[_grid(segments, sums)](total, further, parts.further, sums.shape[1], **_tile(sums))
    return total.to(torch.promote_types(values.dtype, table.dtype))


def inner_products(features: Tensor, offsets: Tensor, tokens: Tensor, table: Tensor) -> Tensor:
    """(entries,) in float32: ⟨tokens[token], table[feature]⟩ for each entry.

    Args:
        features: (entries,) int64, those of one token together, tokens in order.
        offsets: (N + 1,) int64, where the entries of each token begin and end.
        tokens: (N, d).
        table: (n, d).
    """
    out = tokens.new_empty(len(features), dtype=torch.float32)
    if not len(features):
        return out
    width = table.shape[1]
    with torch.cuda.device_of(out):
        _inner_products[(len(offsets) - 1,)](
            out,
            features,
            offsets,
            tokens.contiguous(),
            table.contiguous(),
            width,
            ENTRIES=_ENTRIES,
            **_tile(table),
        )
    return out


def sum_values(values: Tensor, offsets: Tensor) -> Tensor:
    """(segments,) in float32: the sum of each segment's values.

    Args:
        values: (entries,).
        offsets: (segments + 1,) int64.
    """
    out = values.new_empty(len(offsets) - 1, dtype=torch.float32)
    if len(out):
        with torch.cuda.device_of(out):
            _sum_values[(len(out),)](out, values, offsets, VALUES=_VALUES)
    return out


def _launch_sum(out: Tensor, values: Tensor, indices: Tensor, starts: Tensor, ends: Tensor, table: Tensor) -> None:
    if not len(out):
        return
    table = table.contiguous()
    with torch.cuda.device_of(out):
        _sum_rows[_grid(len(out), table)](
            out, values, indices, starts, ends, table, table.shape[1], ENTRIES=_ENTRIES, **_tile(table)
        )


def _grid(segments: int, table: Tensor) -> tuple[int, int]:
    """A program for each segment and each tile of the table's columns."""
    return segments, triton.cdiv(table.shape[1], _tile(table)["COLUMNS"])


def _tile(table: Tensor) -> dict[str, int]:
    """The columns of a program and its warps, which stand side by side along a row.

    With more warps some would hold other entries of the same columns, and every sum would have to cross between them:
    on an H200 a sum of bfloat16 rows takes seven times as long with four warps.
    """
    columns = min(_COLUMNS, triton.next_power_of_2(table.shape[1]))
    return {"COLUMNS": columns, "num_warps": max(1, columns * table.itemsize // _WARP_BYTES)}
