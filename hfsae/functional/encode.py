"""The encoder: pre-activations at the active entries, by the dense or the exact sparse path.

The one place that chooses between the two.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae.functional.kernels import break_even_here
from hfsae.functional.patterns import DensePattern, Pattern, SparsePattern
from hfsae.functional.selection import Selection

Path = Literal["auto", "dense", "sparse"]

# The encoder's N × n pre-activations are made in chunks of tokens that stay below this many bytes.
CHUNK_BYTES = 1 << 30

# Below this share of active entries the sparse products are cheaper than dense ones on a CPU (measured at d = 768,
# n = 12288, N = 4096, float32: a sparse product handles about 17 times fewer entries per second than a dense one).
CPU_BREAK_EVEN = 1 / 17


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    center: Tensor | None,
    selection: Selection,
    path: Path = "auto",
) -> tuple[Pattern, Tensor]:
    """Pre-activations `h = weight (x − center) + bias` at the entries that `selection` picks.

    Under autocast the product that decides which entries are active runs in low precision; the sparse path then
    recomputes their values in the precision of `x`.

    Args:
        x: (N, d) activations.
        weight: (n, d), row i reads feature i.
        bias: (n,).
        center: (d,) subtracted from every token first (`b_dec`), or None.
        selection: Which entries are kept.
        path: `"dense"` keeps all N × n, `"sparse"` only the active entries, `"auto"` decides by device, density and
            size: sparse below the break-even share of active entries (`CPU_BREAK_EVEN`; on CUDA that of the GPU), or,
            on a CPU, where N × n would pass `CHUNK_BYTES`.

    Returns:
        The pattern, and the pre-activations at its entries: (entries,) or (N, n). Differentiable in `x`, `weight`,
        `bias` and `center`; both paths have the same gradients.
    """
    with torch.no_grad():
        centered = x if center is None else x - center
        if path == "sparse" or (path == "auto" and _sparse_whatever_comes(centered, weight, selection)):
            pattern, pre = _select_in_chunks(centered, weight, bias, selection)
        else:
            pre = F.linear(centered, weight, bias)
            mask = selection.mask(pre)
            if path == "dense" or _too_dense(mask, centered):
                pattern = DensePattern(mask)
            else:
                pattern, pre = SparsePattern.from_mask(mask), pre[mask]
        if isinstance(pattern, SparsePattern) and pre.dtype != x.dtype:
            pre = pattern.sampled_product(centered, weight) + bias[pattern.features]
    # The product is already there: autograd only needs to be told what made it.
    if isinstance(pattern, DensePattern):
        return pattern, _Linear.apply(x, weight, bias, center, centered, pre)  # type: ignore[return-value]
    return pattern, _EncodeAt.apply(x, weight, bias, center, centered, pattern, pre)  # type: ignore[return-value]


def _sparse_whatever_comes(x: Tensor, weight: Tensor, selection: Selection) -> bool:
    """Whether the sparse path is right before any pre-activation was seen."""
    n_features = weight.shape[0]
    if (per_token := selection.expected_per_token(n_features)) is not None:
        return per_token <= n_features * _break_even(x)
    return x.device.type == "cpu" and x.shape[0] * n_features * 4 > CHUNK_BYTES


def _too_dense(mask: Tensor, x: Tensor) -> bool:
    """Whether dense products are cheaper for these entries."""
    share = _break_even(x)
    return share == 0 or int(torch.count_nonzero(mask)) > mask.numel() * share


def _break_even(x: Tensor) -> float:
    """The share of active entries below which the sparse products of tokens like these are the cheaper ones."""
    return CPU_BREAK_EVEN if x.device.type == "cpu" else break_even_here(x)


def _select_in_chunks(
    centered: Tensor, weight: Tensor, bias: Tensor, selection: Selection
) -> tuple[SparsePattern, Tensor]:
    """The pattern and its pre-activations, with at most `CHUNK_BYTES` of the N × n product alive."""
    n_features = weight.shape[0]
    chunk = max(1, CHUNK_BYTES // (4 * n_features))
    whole: Tensor | None = None

    def for_each_chunk(collect) -> None:
        nonlocal whole
        if len(centered) <= chunk:
            whole = F.linear(centered, weight, bias) if whole is None else whole
            collect(whole)
        else:
            for part in centered.split(chunk):
                collect(F.linear(part, weight, bias))

    pattern = selection.select(for_each_chunk, n_features)
    if whole is not None:
        return pattern, whole[pattern.tokens, pattern.features]
    return pattern, pattern.sampled_product(centered, weight) + bias[pattern.features]


def _center_gradient(grad_bias: Tensor, weight: Tensor, center: Tensor | None) -> Tensor | None:
    """d center = −(Σ over tokens of dh) weight: reduced over tokens first, never an (N, d) gradient to be summed."""
    return None if center is None else -(grad_bias @ weight)


class _EncodeAt(torch.autograd.Function):
    """Pre-activations that were found at the entries, with the gradients of the product that made them."""

    @staticmethod
    def forward(ctx, x, weight, bias, center, centered: Tensor, pattern: SparsePattern, pre: Tensor) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(centered, weight, center)
        return pre

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        centered, weight, center = ctx.saved_tensors
        pattern: SparsePattern = ctx.pattern
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        grad_bias = pattern.feature_total(grad)
        grad_weight = pattern.feature_sum(grad, centered) if needs_weight else None
        grad_x = pattern.token_sum(grad, weight) if needs_x else None
        return grad_x, grad_weight, grad_bias, _center_gradient(grad_bias, weight, center), None, None, None


class _Linear(torch.autograd.Function):
    """A linear map whose result is already known, its gradients computed in the precision of that result."""

    @staticmethod
    def forward(ctx, x, weight, bias, center, centered: Tensor, pre: Tensor) -> Tensor:
        ctx.save_for_backward(centered, weight, center)
        return pre

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        centered, weight, center = ctx.saved_tensors
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        grad_bias = grad.sum(0, dtype=weight.dtype)
        grad_weight = (grad.T @ centered.to(grad.dtype)).to(weight.dtype) if needs_weight else None
        grad_x = (grad @ weight.to(grad.dtype)).to(centered.dtype) if needs_x else None
        return grad_x, grad_weight, grad_bias, _center_gradient(grad_bias, weight, center), None, None
