"""The encoder: pre-activations at the active entries, by the dense or the exact sparse path.

The one place that chooses between the two.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae.functional.entries import Entries
from hfsae.functional.kernels import break_even_here, screens, serves
from hfsae.functional.not_a_number import apart_from_nan
from hfsae.functional.patterns import DensePattern, Pattern, SparsePattern
from hfsae.functional.precision import narrowed
from hfsae.functional.screening import Screen, pays
from hfsae.functional.selection import Screened, Selection, TopK
from hfsae.functional.traced import is_traced

Path = Literal["auto", "dense", "sparse"]

# No more than this many bytes of the encoder's N × n pre-activations are ever alive.
CHUNK_BYTES = 1 << 30

# The sparse path makes them in chunks, on a CPU of as many tokens as the product needs to run at full speed: each
# reads the weights again (two threads, d = 768, n = 12288: in chunks of 341 tokens the product cost 1.19 times what it
# costs as a whole, in chunks of 512 1.03, of 2048 0.94).
_EFFICIENT_TOKENS = 2048

# Below this share of active entries a sparse step is cheaper than a dense one on a CPU (whole steps of 4,096 tokens in
# float32, standard, topk and gated: 1/7 at d = 768 and n = 12288, 1/7 at 256 and 4096, 1/9 at 128 and 2048).
CPU_BREAK_EVEN = 1 / 8

# Bytes that a number takes where a GPU screens: one in bfloat16, one in float32.
_SCREENED = 6

# Below this share they take less memory: an entry of the sparse path needs three to four times the bytes of one of the
# dense path.
_SMALLER_BELOW = 1 / 4

# Where a rule cannot say how much will be active, so many tokens of the batch are looked at first.
_PROBE_TOKENS = 32


def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    center: Tensor | None,
    selection: Selection,
    path: Path = "auto",
) -> tuple[Pattern, Tensor]:
    """Pre-activations `h = weight (x − center) + bias` at the entries that `selection` picks.

    Under autocast the product that decides which entries are active runs in low precision. On a CPU, whose sparse
    products are in float32, the sparse path then recomputes the values in the precision of `x`. On CUDA all products
    read the narrow type, as on the dense path, and the values are those of the product.

    Args:
        x: (N, d) activations.
        weight: (n, d), row i reads feature i.
        bias: (n,).
        center: (d,) subtracted from every token first (`b_dec`), or None.
        selection: Which entries are kept.
        path: `"dense"` keeps all N × n, `"sparse"` only the active entries, `"auto"` decides by device, density and
            size. It is sparse below the break-even share of active entries (`CPU_BREAK_EVEN`; on CUDA that of the
            GPU). On a CPU, where N × n would pass `CHUNK_BYTES`, it takes what needs less memory.

    Returns:
        The pattern, and the pre-activations at its entries: (entries,) or (N, n). Differentiable in `x`, `weight`,
        `bias` and `center`; both paths have the same gradients.
    """
    if is_traced(x):
        pre = F.linear(x if center is None else x - center, weight, bias)
        return DensePattern(pre, selection.mask), pre
    with torch.no_grad():
        centered = x if center is None else x - center
        load = cache(lambda: selection.load(lambda: F.linear(_probe(centered), weight, bias)))
        read = centered, weight
        if goes_sparse(centered, len(weight), load, path):
            product = narrowed(centered), narrowed(weight)
            pattern, pre = apart_from_nan(product[0], partial(_selected, product[1], narrowed(bias), selection, load))
            if serves(*product):
                read, pre = product, pre.to(x.dtype)
            elif pre.dtype != x.dtype:
                pre = (pattern.sampled_product(centered, weight) + bias[pattern.features]).to(x.dtype)
        else:
            pre = F.linear(centered, weight, bias)
            pattern = DensePattern(pre, selection.mask)
    # The product is already there: autograd only needs to be told what made it.
    if isinstance(pattern, DensePattern):
        return pattern, _Linear.apply(x, weight, bias, center, centered, pre)  # type: ignore[return-value]
    return pattern, _EncodeAt.apply(x, weight, bias, center, *read, pattern, pre)  # type: ignore[return-value]


def goes_sparse(x: Tensor, n_features: int, load: Callable[[], float], path: Path = "auto") -> bool:
    """Whether `encode` takes the sparse path.

    Args:
        x: (N, d) activations.
        n_features: How many features there are.
        load: Gives the number of entries a token.
        path: As `encode` is given it.
    """
    share = _most_active(x, n_features) if path == "auto" else 0.0
    return path == "sparse" or (share > 0 and load() <= n_features * share)


def _selected(
    weight: Tensor, bias: Tensor, selection: Selection, load: Callable[[], float], x: Tensor
) -> tuple[SparsePattern, Tensor]:
    """What a rule picks for tokens (N, d), and its pre-activations; screened in bfloat16 where that is cheaper."""
    n_features = weight.shape[0]
    if isinstance(selection, TopK) and screens(x, weight, selection.k):
        from hfsae.functional.kernels.screened import screened_largest

        features, pre = screened_largest(x, weight, bias, selection.k, max(1, CHUNK_BYTES // (_SCREENED * n_features)))
        return Entries.as_many_each(features, pre).pattern(n_features)
    if pays(x, weight, load) and isinstance(selection, Screened):
        screen = Screen(x, weight, bias, lambda rows: product_in_chunks(rows, weight, bias))
        if (found := selection.screened(screen)) is not None:
            return found
    return selection.select(partial(product_in_chunks, x, weight, bias), n_features)


def _most_active(x: Tensor, n_features: int) -> float:
    """The share of active entries up to which the sparse path is cheaper here, or alone fits; 0: it never is."""
    share = _break_even(x)
    if share and x.device.type == "cpu" and len(x) * n_features * 4 > CHUNK_BYTES:
        share = max(share, _SMALLER_BELOW)
    return share


def _probe(x: Tensor) -> Tensor:
    """Some tokens of the batch."""
    return x[:: max(1, len(x) // _PROBE_TOKENS)]


def _break_even(x: Tensor) -> float:
    """The share of active entries below which the sparse products of tokens like these are the cheaper ones."""
    return CPU_BREAK_EVEN if x.device.type == "cpu" else break_even_here(x)


def product_in_chunks(x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[Tensor]:
    """`F.linear(x, weight, bias)` for some tokens after others, each chunk in the memory of the one before."""
    n_features = weight.shape[0]
    tokens = CHUNK_BYTES // (x.itemsize * n_features)
    if x.device.type == "cpu":
        tokens = min(tokens, _EFFICIENT_TOKENS)
    # Chunks of one size: a short one at the end reads the weights for hardly any tokens.
    chunks = x.tensor_split(max(1, math.ceil(len(x) / max(1, tokens))))
    made = x.new_empty(len(chunks[0]), n_features)
    for part in chunks:
        yield torch.addmm(bias, part, weight.T, out=made[: len(part)])


def _center_gradient(grad_bias: Tensor, weight: Tensor, center: Tensor | None) -> Tensor | None:
    """d center = −(Σ over tokens of dh) weight: reduced over tokens first, never an (N, d) gradient to be summed."""
    return None if center is None else -(grad_bias @ weight)


class _EncodeAt(torch.autograd.Function):
    """Pre-activations that were found at the entries, with the gradients of the product that made them.

    `x_read` and `weight_read` are what the sparse products read: `x − center` and `weight`, perhaps narrower.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, center, x_read, weight_read, pattern: SparsePattern, pre: Tensor) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(x_read, weight_read, weight, center)
        return pre

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x_read, weight_read, weight, center = ctx.saved_tensors
        pattern: SparsePattern
        pattern, grad = ctx.pattern.without_zeros(grad)
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        grad_bias = pattern.feature_total(grad)
        grad_weight = pattern.feature_sum(grad, x_read) if needs_weight else None
        grad_x = pattern.token_sum(grad, weight_read) if needs_x else None
        grad_center = _center_gradient(grad_bias, weight, center)
        return grad_x, grad_weight, grad_bias, grad_center, None, None, None, None


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
