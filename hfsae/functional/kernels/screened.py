"""Exact top-k at the price of a bfloat16 product: tensor cores screen, float32 decides.

What may be among a token's k largest pre-activations is read from their product in bfloat16, whose error is bounded
(`hfsae.functional.rounding`). Of the largest there, a few times k, the float32 values are computed. The k largest of
these are right if the smallest of them is above all that the others can be. A token for which that does not hold is
computed in float32 by a kernel that leaves all other tokens out.

The host asks the device for nothing, so that a step can be recorded (`hfsae.functional.cuda_graph`).
"""

# Triton annotates kernels as they are inside; what launches one passes plain numbers.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor

from hfsae.functional.kernels.largest import largest
from hfsae.functional.kernels.products import inner_products
from hfsae.functional.rounding import HALF_PLACE, LARGEST, ProductError, narrowed_rows

# So many features are looked at in float32 for each that is wanted.
_CANDIDATES_PER_K = 4
# A program of the float32 product makes so many numbers; tiles of 16 and more are what `tl.dot` takes.
_TOKENS, _FEATURES, _COLUMNS = 16, 64, 32


@triton.jit
def _product_where(
    out,
    rows,
    table,
    bias,
    wanted,
    n_rows,
    n,
    width,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[t, f] = ⟨rows[t], table[f]⟩ + bias[f] in float32, for the tokens that are wanted."""
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    here = (token < n_rows) & (tl.load(wanted + token, mask=token < n_rows, other=0) > 0)
    if tl.sum(here.to(tl.int32), axis=0) > 0:
        feature = tl.program_id(1).to(tl.int64) * FEATURES + tl.arange(0, FEATURES)
        there = feature < n
        total = tl.zeros([TOKENS, FEATURES], tl.float32)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            inside = column < width
            left = tl.load(rows + token[:, None] * width + column[None, :], mask=here[:, None] & inside, other=0.0)
            right = tl.load(table + feature * width + column[:, None], mask=inside[:, None] & there, other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
        total += tl.load(bias + feature, mask=there, other=0.0)
        tl.store(out + token[:, None] * n + feature, total, mask=here[:, None] & there)


def screened_largest(x: Tensor, weight: Tensor, bias: Tensor, k: int, tokens_at_once: int) -> tuple[Tensor, Tensor]:
    """The k largest float32 pre-activations of every token: their features (N, k) int64, and they themselves (N, k).

    Args:
        x: (N, d) float32, N at least 1.
        weight: (n, d) float32.
        bias: (n,) float32.
        k: How many, fewer than n.
        tokens_at_once: For so many tokens (tokens, n) numbers are alive at once, in float32.
    """
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    width = x.shape[1]
    narrow_x, narrow_weight = narrowed_rows(x, len(x)), narrowed_rows(weight, len(weight))
    narrow_x[:, width], narrow_weight[:, width] = 1.0, bias
    error = _error(ProductError(x, narrow_x, weight, narrow_weight), bias)
    found = [
        _of_chunk(*part, weight, narrow_weight, bias, k)
        for part in zip(*(whole.split(tokens_at_once) for whole in (x, narrow_x, error)), strict=True)
    ]
    features, pre = zip(*found, strict=True)
    return torch.cat(features), torch.cat(pre)


def _error(products: ProductError, bias: Tensor) -> Tensor:
    """(N,) float64: what each token's pre-activations may be off by before the last rounding; NaN where unknown."""
    matters = bias != -torch.inf  # such a feature is never active
    size = torch.where(matters, bias.double().abs(), 0.0).max()
    rounded = torch.where(matters, (bias.bfloat16().double() - bias.double()).abs(), 0.0).max()
    # Twice: tensor cores also cut off what they shift to the largest of some products before they add them.
    sums = 2 * products.sums_off(products.reach + size)
    known = (products.reach < LARGEST) & (size < LARGEST)
    return torch.where(known, products.off + rounded + sums, torch.nan)


def _of_chunk(
    x: Tensor, narrow_x: Tensor, error: Tensor, weight: Tensor, narrow_weight: Tensor, bias: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    n_tokens, n_features = len(x), len(weight)
    n_candidates = min(_CANDIDATES_PER_K * k, n_features)
    with _summed_in_float32():
        screened = narrow_x @ narrow_weight.T
    candidates = largest(screened, n_candidates)
    offsets = torch.arange(0, n_tokens * n_candidates + 1, n_candidates, device=x.device)
    values = inner_products(candidates.flatten(), offsets, x, weight).view(n_tokens, n_candidates)
    values += bias[candidates]
    kept = largest(values, k)
    features, pre = candidates.gather(1, kept), values.gather(1, kept)
    # No other feature's number is above the least of the candidates'.
    least = screened.gather(1, candidates).amin(1).double()
    certain = pre.amin(1).double() >= least + HALF_PLACE * least.abs() + error  # False for NaN
    alone, alone_pre = _in_float32(x, weight, bias, k, ~certain)
    return torch.where(certain[:, None], features, alone), torch.where(certain[:, None], pre, alone_pre)


def _in_float32(x: Tensor, weight: Tensor, bias: Tensor, k: int, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the tokens that are wanted, by float32 alone; of the others anything."""
    pre = x.new_empty(len(x), len(weight))
    grid = triton.cdiv(len(x), _TOKENS), triton.cdiv(len(weight), _FEATURES)
    with torch.cuda.device_of(x):
        _product_where[grid](
            pre,
            x,
            weight,
            bias,
            wanted.to(torch.int32),
            *pre.shape,
            x.shape[1],
            TOKENS=_TOKENS,
            FEATURES=_FEATURES,
            COLUMNS=_COLUMNS,
        )
    features = largest(pre, k, wanted)
    return features, pre.gather(1, features)


@contextmanager
def _summed_in_float32() -> Iterator[None]:
    """While open, no product of bfloat16 numbers on CUDA adds parts of a sum in bfloat16, which torch allows."""
    products = torch.backends.cuda.matmul
    before = products.allow_bf16_reduced_precision_reduction
    if hasattr(products, "allow_bf16_reduced_precision_reduction_split_k"):
        before = before, products.allow_bf16_reduced_precision_reduction_split_k
    products.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        products.allow_bf16_reduced_precision_reduction = before
