"""The sparse step on CUDA, in Triton: products at a pattern's entries, and the largest of every row.

Triton comes with torch for CUDA; where it is not installed, or a tensor lies elsewhere, `serves` says no and the
caller goes another way. Nothing here imports Triton before a kernel is run. Sums are made in float32 in a fixed order,
without atomics: equal inputs give equal bits.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_DTYPES = {torch.float32, torch.bfloat16, torch.float16}

# Memory bandwidth (bytes/s), dense bfloat16 and float32 peaks (FLOP/s, without sparsity and TF32), from the makers'
# data sheets.
_PEAKS = {
    "A100": (2.0e12, 312e12, 19.5e12),
    "H100": (3.35e12, 989e12, 67e12),
    "H200": (4.8e12, 989e12, 67e12),
}
# Of a GPU that is not in the table: of those in it, the one whose dense products are the hardest to beat.
_UNKNOWN = "H100"


def serves(*tensors: Tensor) -> bool:
    """Whether kernels may take these tensors: all on CUDA, none wider than float32, and Triton installed."""
    return all(tensor.is_cuda and tensor.dtype in _DTYPES for tensor in tensors) and has_triton()


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def break_even(device_name: str, product: torch.dtype, entries: torch.dtype, *, tf32: bool = False) -> float:
    """The share of active entries below which sparse products beat dense ones.

    A dense product is bound by arithmetic, a sparse one by memory: it moves one number for every multiplication and
    addition. They take the same time at the share bandwidth / (peak · bytes of a number / 2): 1/295 on an H100, 1/206
    on an H200, 1/156 on an A100 where both work in bfloat16.

    Args:
        device_name: As `torch.cuda.get_device_name` says it.
        product: What dense products are made in.
        entries: What the rows are stored in that sparse products gather.
        tf32: Whether float32 products run on tensor cores, at half the speed of bfloat16.
    """
    known = next((name for name in _PEAKS if name in device_name), _UNKNOWN)
    bandwidth, bfloat16_peak, float32_peak = _PEAKS[known]
    wide_peak = bfloat16_peak / 2 if tf32 else float32_peak
    peak = bfloat16_peak if product.itemsize == 2 else wide_peak
    return bandwidth / (peak * entries.itemsize / 2)


def break_even_here(x: Tensor) -> float:
    """`break_even` for tokens like these on their GPU, as products are made now; 0 where the kernels do not serve."""
    if not serves(x):
        return 0.0
    device = x.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return break_even(torch.cuda.get_device_name(x.device), product, x.dtype, tf32=tf32)
