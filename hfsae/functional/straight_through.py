"""Straight-through gradients for thresholds (Rajamanoharan et al. 2024b, arXiv:2407.14435, with a rectangle kernel).

The kernel K(u) = 1[|u| < ½] of width ε looks at the pre-activation itself, never at a value that was already cut.
"""

import torch
from torch import Tensor

from hfsae.functional.blocks import SumLike, in_blocks, where_positive, where_within
from hfsae.functional.precision import at_least_float32
from hfsae.functional.traced import is_traced


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        values = torch.empty_like(pre)
        for made, h, at in in_blocks(values, pre, threshold):
            where_positive(h, (h - at).to(h.dtype), out=made)
        return values

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        grad_pre, jumps = torch.empty_like(pre), SumLike(threshold)
        for made, h, g, at in in_blocks(grad_pre, pre, grad, threshold):
            margin = (h - at).to(h.dtype)
            where_positive(g, margin, out=made)
            jumps.add(where_within(g, margin, ctx.bandwidth / 2))
        return grad_pre, jumps.total.mul_(-1 / ctx.bandwidth).mul_(threshold), None


class _CountActive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        count = sum(torch.count_nonzero(h > at) for h, at in in_blocks(pre, threshold))
        return torch.as_tensor(count, device=pre.device).to(at_least_float32(pre[:0]).dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        one, within = torch.ones((), dtype=threshold.dtype, device=pre.device), SumLike(threshold)
        for h, at in in_blocks(pre, threshold):
            margin = (h - at).to(one.dtype)
            within.add(where_within(one.expand_as(margin), margin, ctx.bandwidth / 2))
        return None, within.total.mul_(grad * (-1 / ctx.bandwidth)), None


class _IsActive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        flags = torch.empty_like(at_least_float32(pre))
        for made, h, at in in_blocks(flags, pre, threshold):
            made.copy_(h > at)
        return flags

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        within = SumLike(threshold)
        for h, g, at in in_blocks(pre, grad, threshold):
            margin = (h - at).to(threshold.dtype)
            within.add(where_within(g.to(margin.dtype), margin, ctx.bandwidth / 2))
        return None, within.total.mul_(-1 / ctx.bandwidth), None


def jump_relu(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """`pre · 1[pre > threshold]`, with ∂/∂threshold = −(threshold/ε) K((pre − threshold)/ε).

    Args:
        pre: Pre-activations.
        threshold: Of the same shape, or of fewer dimensions and broadcasting against `pre`.
        bandwidth: ε, in the units of `pre`.
    """
    if is_traced(pre):
        margin = (pre - threshold).to(pre.dtype).detach()
        near = -(threshold / bandwidth) * (margin.abs() < bandwidth / 2)
        # Adds 0, whose gradient is that of the threshold.
        return torch.where(margin <= 0, 0, pre) + (near.detach() * (threshold - threshold.detach())).to(pre.dtype)
    return _JumpReLU.apply(pre, threshold, bandwidth)  # type: ignore[return-value]


def count_active(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Σ 1[pre > threshold], with ∂/∂threshold = −(1/ε) K((pre − threshold)/ε) at each and no gradient to `pre`.

    Args:
        pre: Pre-activations.
        threshold: Of the same shape, or of fewer dimensions and broadcasting against `pre`.
        bandwidth: ε, in the units of `pre`.

    Returns:
        ().
    """
    return _CountActive.apply(pre, threshold, bandwidth)  # type: ignore[return-value]


def is_active(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1[pre > threshold] at each place; the gradients are those of `count_active`, which is their sum.

    Args:
        pre: Pre-activations.
        threshold: Of the same shape, or of fewer dimensions and broadcasting against `pre`.
        bandwidth: ε, in the units of `pre`.

    Returns:
        Of the shape of `pre`, at least float32.
    """
    return _IsActive.apply(pre, threshold, bandwidth)  # type: ignore[return-value]
