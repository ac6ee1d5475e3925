"""Straight-through gradients for thresholds (Rajamanoharan et al. 2024b, arXiv:2407.14435, with a rectangle kernel).

The kernel K(u) = 1[|u| < ½] of width ε looks at the pre-activation itself, never at a value that was already cut.
"""

import torch
from torch import Tensor


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        grad_threshold = -(threshold / ctx.bandwidth) * near * grad
        return grad * (pre > threshold), grad_threshold.sum_to_size(threshold.shape), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < ctx.bandwidth / 2
        return None, (-(1 / ctx.bandwidth) * near * grad).sum_to_size(threshold.shape), None


def jump_relu(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """`pre · 1[pre > threshold]`, with ∂/∂threshold = −(threshold/ε) K((pre − threshold)/ε).

    Args:
        pre: Pre-activations.
        threshold: Broadcasts against `pre`.
        bandwidth: ε, in the units of `pre`.
    """
    return _JumpReLU.apply(pre, threshold, bandwidth)  # type: ignore[return-value]


def step(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """`1[pre > threshold]`, with ∂/∂threshold = −(1/ε) K((pre − threshold)/ε) and no gradient to `pre`.

    Args:
        pre: Pre-activations.
        threshold: Broadcasts against `pre`.
        bandwidth: ε, in the units of `pre`.
    """
    return _Step.apply(pre, threshold, bandwidth)  # type: ignore[return-value]
