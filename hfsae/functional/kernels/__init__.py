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
# How much more often sparse products pay than that: dense ones also carry (N, n) tensors through memory, and much of
# what sparse ones gather lies in cache. Whole steps on an H200, N = 16384, d = 768: they break even at about 1/36 in
# bfloat16 with n = 32768 (1/64 against a compiled dense step), at about 1/12 in float32 with n = 16384.
_ADVANTAGE = 2.5
# Of each token 4 k features are read again, 16 d bytes for each that is wanted; by the peaks of an H100 that takes as
# long as the float32 product of 160 features. Not yet measured.
_FEATURES_PER_K = 256
# Of a GPU that is not in the table: of those in it, the one whose dense products are the hardest to beat.
_UNKNOWN = "H100"


def serves(*tensors: Tensor) -> bool:
    """Whether kernels may take these tensors: all on CUDA, none wider than float32, and Triton installed."""
    return all(tensor.is_cuda and tensor.dtype in _DTYPES for tensor in tensors) and has_triton()


def screens(x: Tensor, weight: Tensor, k: int) -> bool:
    """Whether the k largest of each token are screened in bfloat16.

    They are on CUDA, where float32 products are in full precision, and where there are many features. Then the product
    costs more than a second look at some of them.

    Args:
        x: (N, d).
        weight: (n, d).
        k: How many are wanted.
    """
    exact = x.dtype == weight.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    return exact and serves(x, weight) and len(x) > 0 and len(weight) >= _FEATURES_PER_K * k and has_tensor_cores(x)


def has_tensor_cores(x: Tensor) -> bool:
    """Whether a tensor's GPU multiplies in bfloat16 by units of its own: the A100 and what came after it."""
    return torch.cuda.get_device_capability(x.device) >= (8, 0)


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def break_even(device_name: str, dtype: torch.dtype, *, tf32: bool = False) -> float:
    """The share of active entries below which sparse products beat dense ones.

    A dense product is bound by arithmetic, a sparse one by memory: it moves one number for every multiplication and
    addition. By themselves they take the same time at the share bandwidth / (peak · bytes of a number / 2). In
    bfloat16 that is 1/295 on an H100, 1/206 on an H200, 1/156 on an A100. In whole steps it is 2.5 times that, by
    measurement.

    Args:
        device_name: As `torch.cuda.get_device_name` says it.
        dtype: What products read.
        tf32: Whether dense float32 products run on tensor cores, at half the speed of bfloat16.
    """
    known = next((name for name in _PEAKS if name in device_name), _UNKNOWN)
    bandwidth, bfloat16_peak, float32_peak = _PEAKS[known]
    wide_peak = bfloat16_peak / 2 if tf32 else float32_peak
    peak = bfloat16_peak if dtype.itemsize == 2 else wide_peak
    return _ADVANTAGE * bandwidth / (peak * dtype.itemsize / 2)


def break_even_here(x: Tensor) -> float:
    """`break_even` for tokens like these on their GPU, as products are made now; 0 where the kernels do not serve."""
    if not serves(x):
        return 0.0
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return break_even(torch.cuda.get_device_name(x.device), dtype, tf32=tf32)
