"""The SAEs at their plainest: dense, in ordinary autograd, as the papers write them.

Slow on purpose: this is what the fast paths are tested against, values and gradients, in float32 and float64.
Everything is in scaled space: `x` (N, d) is the activation times the input scale. Each architecture is one function
that gives its features (N, n) and the loss that training minimises, a mean over tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """What every SAE has: `W_e` (n, d), `b_e` (n,), `W_dec` (n, d), `b_dec` (d,)."""

    W_e: Tensor
    b_e: Tensor
    W_dec: Tensor
    b_dec: Tensor


def pre_activations(x: Tensor, w: Weights) -> Tensor:
    """`h = W_e (x − b_dec) + b_e`."""
    return (x - w.b_dec) @ w.W_e.T + w.b_e


def decode(z: Tensor, w: Weights) -> Tensor:
    """`x̂ = Σ z_i W_dec[i] + b_dec`."""
    return z @ w.W_dec + w.b_dec


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean over tokens of ‖x̂ − x‖²."""
    return (x_hat - x).square().sum(1).mean()


def _largest(numbers: Tensor, k: int) -> Tensor:
    """The places of the k largest along the last dimension; of equal ones the first."""
    return numbers.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def standard(
    x: Tensor,
    w: Weights,
    *,
    coefficient: float,
    weight_by_decoder_norm: bool = True,
    widths: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """ReLU features; squared error + λ · Σ z_i, each z_i times ‖W_dec[i]‖ or not.

    Of a crosscoder with sources of these `widths`, ‖W_dec[i]‖ is the sum of the row's norms in all of them.
    """
    z = pre_activations(x, w).relu()
    norms = sum(part.norm(dim=1) for part in w.W_dec.split(widths or w.W_dec.shape[1], dim=1))
    penalised = z * norms if weight_by_decoder_norm else z
    return z, squared_error(decode(z, w), x) + coefficient * penalised.sum(1).mean()


def topk(
    x: Tensor, w: Weights, *, k: int, multi_topk: bool = False, budgets: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations of each token, after a ReLU; squared error, + ⅛ of that with 4k features.

    With budgets the squared error is the mean of those with so many features, for each of them.
    """
    h = pre_activations(x, w)

    def keep(k: int) -> Tensor:
        return h.relu() * torch.zeros_like(h).scatter(1, _largest(h, k), 1.0)

    z = keep(k)
    loss = torch.stack([squared_error(decode(keep(budget), w), x) for budget in budgets or [k]]).mean()
    if multi_topk:
        loss = loss + squared_error(decode(keep(min(4 * k, h.shape[1])), w), x) / 8
    return z, loss


def abs_topk(x: Tensor, w: Weights, *, k: int) -> tuple[Tensor, Tensor]:
    """The k pre-activations of each token that are farthest from 0, with their signs; squared error."""
    h = pre_activations(x, w)
    z = h * torch.zeros_like(h).scatter(1, _largest(h.abs(), k), 1.0)
    return z, squared_error(decode(z, w), x)


def matching_pursuit(
    x: Tensor, w: Weights, *, k: int, residual_threshold: float = 0.0, stop_on_duplicate: bool = True
) -> tuple[Tensor, Tensor]:
    """k times the row with the largest product with what is missing, taken off it; squared error. `W_dec` alone reads.

    A token ends with a step that adds no new feature, or once less than the threshold is missing.
    """
    features = []
    for token in x:
        missing, z = token - w.b_dec, torch.zeros_like(w.W_dec[:, 0])
        for _ in range(k):
            products = w.W_dec @ missing
            best = int(products.argmax())
            value = products[best].relu()
            ends = stop_on_duplicate and (value == 0 or bool(z[best] != 0))
            z = z + value * torch.eye(len(z), dtype=z.dtype)[best]
            missing = missing - value * w.W_dec[best]
            if ends or missing.norm() < residual_threshold:
                break
        features.append(z)
    codes = torch.stack(features)
    return codes, squared_error(decode(codes, w), x)


def batch_topk(x: Tensor, w: Weights, *, k: int) -> tuple[Tensor, Tensor]:
    """The k·N largest pre-activations of the batch, after a ReLU; squared error."""
    h = pre_activations(x, w).relu()
    kept = _largest(h.flatten(), k * len(x))
    z = h * torch.zeros_like(h).flatten().scatter(0, kept, 1.0).view_as(h)
    return z, squared_error(decode(z, w), x)


def matryoshka(
    x: Tensor, w: Weights, *, k: int, prefixes: list[int], weights: list[float], orthogonality: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The features of `batch_topk`; the weighted mean of the squared errors from the first m features alone.

    Orthogonality adds γ · V · the mean over decoder rows of the squared cosine with the closest one of all others.
    """
    z, _ = batch_topk(x, w, k=k)
    errors = torch.stack([squared_error(z[:, :m] @ w.W_dec[:m] + w.b_dec, x) for m in prefixes])
    loss = (errors.new_tensor(weights) * errors).sum() / sum(weights)
    if orthogonality and len(w.W_dec) > 1:
        rows = w.W_dec / w.W_dec.norm(dim=1, keepdim=True)
        others = (rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)].view(len(rows), -1)
        variance = x.var(0, correction=0).sum().detach()
        loss = loss + orthogonality * variance * others.amax(1).relu().square().mean()
    return z, loss


def jumprelu(
    x: Tensor,
    w: Weights,
    *,
    threshold: Tensor,
    bandwidth: float,
    coefficient: float,
    sparsity: str = "l0",
    target_l0: float = 1.0,
    tanh_scale: float = 4.0,
    frequency_scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`h · 1[h > θ]`; squared error + λ times one of three counts of active features.

    `"l0"` counts them, `"l0_quadratic"` takes (mean count / target − 1)², `"tanh"` adds up tanh(c · z_i ‖W_dec[i]‖).
    A frequency scale adds λ · Σ (mean count of feature i)² / scale, for `"l0_quadratic"` divided by the target.
    """
    h = pre_activations(x, w)
    z = h * _heaviside(h, threshold) + _through(threshold, -threshold * _kernel(h, threshold, bandwidth))
    if sparsity == "tanh":
        active = (tanh_scale * z * w.W_dec.norm(dim=1)).tanh()
    else:
        active = _heaviside(h, threshold) + _through(threshold, -_kernel(h, threshold, bandwidth))
    l0 = active.sum(1).mean()
    penalty = (l0 / target_l0 - 1) ** 2 if sparsity == "l0_quadratic" else l0
    if frequency_scale is not None:
        frequent = active.mean(0).square().sum() / frequency_scale
        penalty = penalty + (frequent / target_l0 if sparsity == "l0_quadratic" else frequent)
    return z, squared_error(decode(z, w), x) + coefficient * penalty


def gated(
    x: Tensor, w: Weights, *, magnitude_bias: Tensor, magnitude_log_scale: Tensor, coefficient: float
) -> tuple[Tensor, Tensor]:
    """`1[π + b_gate > 0] · ReLU(exp(r) π + b_mag)`. `b_e` is b_gate.

    The loss is the squared error + λ · Σ ReLU(π + b_gate)_i ‖W_dec[i]‖ + the squared error of the gate's own ReLU. The
    last term goes through a decoder that it cannot move.
    """
    gate = pre_activations(x, w)
    projection = gate - w.b_e
    z = (gate > 0) * (magnitude_log_scale.exp() * projection + magnitude_bias).relu()
    penalty = (gate.relu() * w.W_dec.norm(dim=1)).sum(1).mean()
    frozen = Weights(w.W_e, w.b_e, w.W_dec.detach(), w.b_dec.detach())
    gate_error = squared_error(decode(gate.relu(), frozen), x)
    return z, squared_error(decode(z, w), x) + coefficient * penalty + gate_error


def auxk(x: Tensor, w: Weights, *, features: Tensor, dead: Tensor, alpha: float, signed: bool = False) -> Tensor:
    """What dead features miss of the error that living ones leave, in units of the batch's variance.

    `α · min(n_dead / k_aux, 1) · V · ‖e − ê‖² / ‖e − ē‖²` with e = x − x̂ detached, ê what the k_aux = d/2 strongest
    dead features make of it, V the summed variance of x. Signed features count by their size.
    """
    k_aux = max(1, x.shape[1] // 2)
    n_dead = int(dead.sum())
    error = (x - decode(features, w)).detach()
    h = pre_activations(x, w).masked_fill(~dead, 0.0)
    h = h if signed else h.relu()
    strongest = torch.zeros_like(h).scatter(1, h.abs().topk(min(k_aux, n_dead)).indices, 1.0)
    missed = (error - (h * strongest) @ w.W_dec).square().sum()
    variance = x.var(0, correction=0).sum().detach()
    spread = (error - error.mean(0)).square().sum()
    return alpha * min(n_dead / k_aux, 1.0) * variance * missed / spread


def pre_act(x: Tensor, w: Weights, *, threshold: Tensor, dead: Tensor) -> Tensor:
    """Σ over dead features of ReLU(θ_i − h_i) ‖W_dec[i]‖: how far they are below their thresholds."""
    below = (threshold - pre_activations(x, w)).relu() * w.W_dec.norm(dim=1)
    return (below * dead).sum(1).mean()


def _heaviside(h: Tensor, threshold: Tensor) -> Tensor:
    return (h > threshold).to(h.dtype)


def _kernel(h: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """`K((h − θ)/ε) / ε` with the rectangle K(u) = 1[|u| < ½]."""
    return ((h - threshold).abs() < bandwidth / 2).to(h.dtype) / bandwidth


def _through(threshold: Tensor, gradient: Tensor) -> Tensor:
    """0, with `gradient` as its derivative by the threshold: a straight-through estimate."""
    gradient = gradient.detach()
    return gradient * threshold - (gradient * threshold).detach()
