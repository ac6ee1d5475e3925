"""Patterns with hypothesis, and what the products of a pattern are in plain dense arithmetic."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from hfsae.functional import DensePattern, SparsePattern

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """(N, n) bool of any density, with tokens that have nothing and features that nobody has; N may be 0."""
    n_tokens, n_features = draw(st.integers(0, 9)), draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = torch.rand(n_tokens, n_features, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    mask[: draw(st.integers(0, 2))] = False
    mask[:, : draw(st.integers(0, 2))] = False
    return mask


def both(mask: Tensor, values: Tensor) -> list[tuple[SparsePattern | DensePattern, Tensor]]:
    """The same entries and values (N, n) as either pattern stores them; the values are new leaves."""
    sparse, dense = SparsePattern.from_mask(mask), DensePattern.from_mask(mask)
    kept = values * mask
    return [
        (sparse, kept[sparse.tokens, sparse.features].detach().requires_grad_()),
        (dense, kept.detach().clone().requires_grad_()),
    ]
