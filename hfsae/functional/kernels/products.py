"""Products that touch only the entries of a pattern: sums of weighted rows, inner products, sums of values.

The decoder and both weight gradients are the same sum: rows of a table, weighted and added up segment by segment. For
the decoder a segment is a token and the table the decoder; for a weight gradient it is a feature, its entries brought
together by one stable sort, and the table the tokens' gradients or activations.
"""

# Triton annotates kernels as they are inside; what launches one passes plain numbers.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries of a feature that one program adds up: a feature that fires on thousands of tokens is shared among several.
_LONGEST_SEGMENT = 512
# Entries that are in flight together, and columns of the table that a program is responsible for.
_ENTRIES, _COLUMNS = 16, 256
# Values of a segment that are added at once where there is no table.
_VALUES = 256


@triton.jit
def _sum_rows(
    out, values, indices, starts, ends, table, width, add: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):
    """out[s] = Σ over entries e of segment s: values[e] · table[indices[e]]; or that added to what is there."""
    segment = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    start = tl.load(starts + segment)
    end = tl.load(ends + segment)
    if add:
        if start == end:
            return
    total = tl.zeros([COLUMNS], tl.float32)
    if add:
        total += tl.load(out + segment * width + columns, mask=inside, other=0.0)
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
    """(segments, d) in the table's dtype: for each segment Σ value × table[index], in the order of its entries.

    Args:
        values: (entries,).
        indices: (entries,) int64, the row of the table for each entry.
        offsets: (segments + 1,) int64, where the entries of each segment begin and end.
        table: (rows, d).
    """
    out = table.new_empty(len(offsets) - 1, table.shape[1])
    _launch_sum(out, values, indices, offsets[:-1], offsets[1:], table)
    return out


def sum_long_rows(
    values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor, out: Tensor | None = None
) -> Tensor:
    """`sum_rows` where a few segments may be much longer than the others: their parts are added up side by side.

    The parts are cut at fixed places and joined in order, so the result has the same bits every time; how many there
    are is bounded without asking the device.

    Args:
        values: (entries,).
        indices: (entries,) int64.
        offsets: (segments + 1,) int64.
        table: (rows, d).
        out: (segments, d) of float32 to write to and to return.
    """
    starts, ends = offsets[:-1], offsets[1:]
    total = table.new_empty(len(starts), table.shape[1], dtype=torch.float32) if out is None else out
    _launch_sum(total, values, indices, starts, torch.minimum(ends, starts + _LONGEST_SEGMENT), table)
    if most_parts := len(values) // _LONGEST_SEGMENT:
        parts_of = (ends - starts - 1).clamp(min=0) // _LONGEST_SEGMENT  # beyond the first, by segment
        last_part = parts_of.cumsum(0)
        part = torch.arange(most_parts, device=table.device)
        owner = torch.searchsorted(last_part, part, right=True).clamp(max=len(starts) - 1)
        number = part - (last_part - parts_of)[owner] + 1
        # Parts that nobody has begin at their owner's end.
        begin = torch.minimum(starts[owner] + number * _LONGEST_SEGMENT, ends[owner])
        parts = total.new_empty(most_parts, table.shape[1])
        _launch_sum(parts, values, indices, begin, torch.minimum(begin + _LONGEST_SEGMENT, ends[owner]), table)
        ones = torch.ones(most_parts, device=table.device)
        _launch_sum(total, ones, part, last_part - parts_of, last_part, parts, add=True)
    return total.to(table.dtype) if out is None else out


def inner_products(features: Tensor, offsets: Tensor, tokens: Tensor, table: Tensor) -> Tensor:
    """(entries,) in the dtype of `tokens`: ⟨tokens[token], table[feature]⟩ for each entry.

    Args:
        features: (entries,) int64, those of one token together, tokens in order.
        offsets: (N + 1,) int64, where the entries of each token begin and end.
        tokens: (N, d).
        table: (n, d).
    """
    out = tokens.new_empty(len(features))
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
            COLUMNS=_columns(width),
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


def _launch_sum(
    out: Tensor, values: Tensor, indices: Tensor, starts: Tensor, ends: Tensor, table: Tensor, add: bool = False
) -> None:
    segments, width = out.shape
    if not segments:
        return
    columns = _columns(width)
    grid = (segments, triton.cdiv(width, columns))
    with torch.cuda.device_of(out):
        _sum_rows[grid](
            out,
            values,
            indices,
            starts.contiguous(),
            ends.contiguous(),
            table.contiguous(),
            width,
            add=add,
            ENTRIES=_ENTRIES,
            COLUMNS=columns,
        )


def _columns(width: int) -> int:
    return min(_COLUMNS, triton.next_power_of_2(width))
