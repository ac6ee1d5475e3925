"""How much a gated feature is active (Rajamanoharan et al. 2024a, arXiv:2404.16014, equation 7)."""

import torch
from torch import Tensor

from hfsae.functional.blocks import SumLike, in_blocks, where_positive
from hfsae.functional.traced import is_traced


class _GatedMagnitude(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate: Tensor, gate_bias: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        values = torch.empty_like(gate)
        # scale · (gate − gate_bias) + bias, with one product and one sum.
        for made, h, factor, shift in in_blocks(values, gate, scale, bias - scale * gate_bias):
            where_positive(torch.addcmul(shift, h, factor).relu_(), h, out=made)
        ctx.save_for_backward(gate, gate_bias, scale, values)
        return values

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        gate, gate_bias, scale, values = ctx.saved_tensors
        grad_gate, passed, weighted = torch.empty_like(gate), SumLike(scale), SumLike(scale)
        for made, h, z, g, factor in in_blocks(grad_gate, gate, values, grad, scale):
            through = where_positive(g, z)
            torch.mul(through, factor, out=made)
            passed.add(through)
            weighted.add(through.mul_(h))
        grad_scale = weighted.total - gate_bias * passed.total
        return grad_gate, -scale * passed.total, grad_scale, passed.total


def gated_magnitude(gate: Tensor, gate_bias: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """`1[gate > 0] · ReLU(scale · (gate − gate_bias) + bias)`.

    Args:
        gate: What the gate sees, π + gate_bias: (entries,) or (N, n).
        gate_bias: (entries,), or (n,) beside (N, n); as the others.
        scale: exp(r).
        bias: The bias of the magnitude.
    """
    if is_traced(gate):
        magnitude = torch.addcmul(bias - scale * gate_bias, gate, scale).relu()
        return torch.where(gate <= 0, 0, magnitude)
    return _GatedMagnitude.apply(gate, gate_bias, scale, bias)  # type: ignore[return-value]
