"""What training does to decoder rows beside Adam, a row a program: read once, written once, nothing in between."""

# Triton annotates kernels as they are inside; what launches one passes plain numbers.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers that a thread holds of each row.
_NUMBERS = 8


@triton.jit
def _remove_parallel(grads, rows, width, COLUMNS: tl.constexpr):
    """grads[r] −= ⟨grads[r], rows[r]⟩ rows[r]."""
    columns = tl.arange(0, COLUMNS)
    place = tl.program_id(0).to(tl.int64) * width + columns
    row = tl.load(rows + place, mask=columns < width, other=0.0).to(tl.float32)
    grad = tl.load(grads + place, mask=columns < width, other=0.0).to(tl.float32)
    grad -= tl.sum(grad * row, axis=0) * row
    tl.store(grads + place, grad.to(grads.dtype.element_ty), mask=columns < width)


@triton.jit
def _renormalise(rows, width, least, COLUMNS: tl.constexpr):
    """rows[r] /= ‖rows[r]‖, or `least` where that is more."""
    columns = tl.arange(0, COLUMNS)
    place = tl.program_id(0).to(tl.int64) * width + columns
    row = tl.load(rows + place, mask=columns < width, other=0.0).to(tl.float32)
    norm = tl.sqrt(tl.sum(row * row, axis=0))
    row /= tl.maximum(norm, least)
    tl.store(rows + place, row.to(rows.dtype.element_ty), mask=columns < width)


def remove_parallel(grads: Tensor, rows: Tensor) -> None:
    """Takes from each gradient the part along its row, in place.

    Args:
        grads: (n, d), contiguous.
        rows: (n, d) of unit norm, contiguous.
    """
    if len(rows):
        with torch.cuda.device_of(rows):
            _remove_parallel[(len(rows),)](grads, rows, rows.shape[1], **_tile(rows))


def divide_by_norms(rows: Tensor, least: float) -> None:
    """Divides each row by its norm, or by `least` where that is more, in place.

    Args:
        rows: (n, d), contiguous.
        least: What is never gone below.
    """
    if len(rows):
        with torch.cuda.device_of(rows):
            _renormalise[(len(rows),)](rows, rows.shape[1], least, **_tile(rows))


def _tile(rows: Tensor) -> dict[str, int]:
    columns = triton.next_power_of_2(rows.shape[1])
    return {"COLUMNS": columns, "num_warps": min(16, max(1, columns // (32 * _NUMBERS)))}
