"""Matching pursuit: a sparse code found row by row, and its gradient through every step.

The gradient keeps no step's residual: going back, each one is made from the one after it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae.functional.encode import Path, product_in_chunks
from hfsae.functional.patterns import DensePattern, Pattern, SparsePattern
from hfsae.functional.precision import at_least_float32
from hfsae.functional.traced import is_traced

# What is left of a token below this many times its own rounding error is no more to be found in it.
_ROUNDING = 8


@dataclass(frozen=True)
class Pursuit:
    """How long to look for features.

    Args:
        k: Steps at most.
        residual_threshold: A token ends where the norm of what is missing falls below this; 0: never.
        stop_on_duplicate: Whether a token also ends with a step that changes nothing of which features it has.
    """

    k: int
    residual_threshold: float = 0.0
    stop_on_duplicate: bool = True


def pursue(x: Tensor, rows: Tensor, rule: Pursuit, path: Path = "auto") -> tuple[Pattern, Tensor]:
    """The features of tokens, and their values.

    A token also ends where what is missing is no more than rounding errors leave.

    Args:
        x: (N, d) what is to be written.
        rows: (n, d).
        rule: How long to look.
        path: `"dense"` gives values (N, n), otherwise those at the active entries alone.

    Returns:
        The pattern, and the values at its entries, none negative. Differentiable in `x` and `rows`, at the features
        that were picked.
    """
    if is_traced(x):
        dense = _plainly(x, rows, rule)
        return DensePattern.from_mask(dense != 0), dense
    return _pursued(x, rows, rule, path)  # type: ignore[call-arg]


@torch.compiler.disable
def _pursued(x: Tensor, rows: Tensor, rule: Pursuit, path: Path) -> tuple[Pattern, Tensor]:
    values, picked = _Pursue.apply(x, rows, rule)  # type: ignore[misc]
    if path == "dense":
        dense = values.new_zeros(len(x), len(rows)).scatter_add(1, picked, values)
        return DensePattern.from_mask(dense.detach() != 0), dense
    active = values.detach() != 0
    return SparsePattern(picked[active], active.sum(1), len(rows)), values[active]


class _Pursue(torch.autograd.Function):
    """Values (N, k) of the features (N, k) that each step picked; of one picked twice, all at the first place."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, rule: Pursuit):
        # Which rows are picked must not depend on how wide the products are, so autocast has no say here.
        with torch.autocast(x.device.type, enabled=False):
            missing, table = at_least_float32(x).clone(), at_least_float32(rows)
            picked, steps, place = _walk(missing, table, rule)
        ctx.save_for_backward(missing, table, picked, steps, place)
        ctx.dtypes = x.dtype, rows.dtype
        values = torch.zeros_like(steps).scatter_add(1, place, steps).to(x.dtype)
        ctx.mark_non_differentiable(picked)
        return values, picked

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor):  # type: ignore[override]
        missing, table, picked, steps, place = ctx.saved_tensors
        # Each step's value is a part of the value at its place. A step that added nothing has no gradient.
        of_steps = grad.to(steps.dtype).gather(1, place) * (steps != 0)
        back, grad_rows = torch.zeros_like(missing), torch.zeros_like(table)
        for step in reversed(range(steps.shape[1])):
            row, value = table[picked[:, step]], steps[:, step, None]
            missing = missing + value * row
            of_value = of_steps[:, step, None] - (back * row).sum(1, keepdim=True) * (value != 0)
            grad_rows.index_add_(0, picked[:, step], of_value * missing - value * back)
            back = back + of_value * row
        return back.to(ctx.dtypes[0]), grad_rows.to(ctx.dtypes[1]), None


def _walk(missing: Tensor, rows: Tensor, rule: Pursuit) -> tuple[Tensor, Tensor, Tensor]:
    """Runs all steps; `missing` becomes what is missing after the last one.

    Returns:
        (N, k) each: the feature that a step picked; what it added; the first step that picked this feature.
    """
    n_tokens = len(missing)
    picked = torch.zeros(n_tokens, rule.k, dtype=torch.int64, device=missing.device)
    steps, place = missing.new_zeros(n_tokens, rule.k), torch.zeros_like(picked)
    done = torch.zeros(n_tokens, dtype=torch.bool, device=missing.device)
    least = _least_missing(missing, rule)
    for step in range(rule.k):
        if done.all():
            break
        feature = _closest(missing, rows)
        row = rows[feature]
        value = (missing * row).sum(1).relu().masked_fill(done, 0.0)
        before = (picked[:, :step] == feature[:, None]) & (steps[:, :step] != 0)
        again = before.any(1)
        picked[:, step], steps[:, step] = feature, value
        place[:, step] = torch.where(again, before.byte().argmax(1), step) if step else 0
        missing -= value[:, None] * row
        if rule.stop_on_duplicate:
            done |= again | (value == 0)
        done |= missing.norm(dim=1) < least
    return picked, steps, place


def _plainly(x: Tensor, rows: Tensor, rule: Pursuit) -> Tensor:
    """(N, n) the same as operations that ask for no number and that any transform can differentiate."""
    missing, table = at_least_float32(x), at_least_float32(rows)
    least, values = _least_missing(missing, rule), torch.zeros_like(F.linear(missing, table))
    done = torch.zeros_like(missing[:, 0], dtype=torch.bool)
    for _ in range(rule.k):
        value, feature = F.linear(missing, table).max(1, keepdim=True)
        value = torch.where(done[:, None], 0.0, value.relu())
        if rule.stop_on_duplicate:
            done = done | ((value == 0) | (values.gather(1, feature) != 0))[:, 0]
        values = values + torch.zeros_like(values).scatter(1, feature, value)
        missing = missing - value * table[feature[:, 0]]
        done = done | (missing.norm(dim=1) < least)
    return values.to(x.dtype)


def _least_missing(x: Tensor, rule: Pursuit) -> Tensor:
    """(N,) the norm of what is missing below which a token ends."""
    return (x.detach().norm(dim=1) * (_ROUNDING * torch.finfo(x.dtype).eps)).clamp(min=rule.residual_threshold)


def _closest(missing: Tensor, rows: Tensor) -> Tensor:
    """(N,) the row with the largest product with each token."""
    no_bias = torch.zeros_like(rows[:, 0])
    return torch.cat([products.argmax(1) for products in product_in_chunks(missing, rows, no_bias)])
