"""Entries cut by rules of which each keeps all that the one before keeps."""

import pytest
import torch

from hfsae.functional import DensePattern, SparsePattern, TopK
from hfsae.functional.nested import nested

N, WIDTH, K, KS = 7, 30, 8, (1, 3, 5)
PRE = torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def expected() -> list[torch.Tensor]:
    """What each k adds, from a full sort of every row."""
    order = PRE.argsort(1, descending=True)
    ends = [0, *KS, K]
    return [
        torch.zeros_like(PRE).scatter(1, order[:, a:b], PRE.gather(1, order[:, a:b]))
        for a, b in zip(ends, ends[1:], strict=False)
    ]


def picked(form: str) -> tuple[object, torch.Tensor]:
    mask = TopK(K).mask(PRE)
    if form == "dense":
        return DensePattern.from_mask(mask), PRE
    pattern = SparsePattern.from_mask(mask)
    values = PRE[mask]
    return (SparsePattern.as_many_each(pattern.features.view(N, K), WIDTH) if form == "each" else pattern), values


@pytest.mark.parametrize("form", ["dense", "sparse", "each"])
def test_the_parts_are_what_each_k_adds(form: str):
    pattern, pre = picked(form)
    values = pre.clone().requires_grad_()
    parts = nested(pattern, values, pre, [TopK(k) for k in KS], K)
    for (part, own), wanted in zip(parts, expected(), strict=True):
        torch.testing.assert_close(part.to_dense(part.keep(own)), wanted)
    # Each entry's gradient comes from its own part alone.
    sum(weight * own.sum() for weight, (_, own) in enumerate(parts, start=1)).backward()
    rank = PRE.argsort(1, descending=True).argsort(1)
    weight = 1 + sum((rank >= k).double() for k in KS)
    mask = TopK(K).mask(PRE)
    torch.testing.assert_close(values.grad[mask] if form == "dense" else values.grad, weight[mask])


def test_tokens_of_unequal_counts_are_cut_each_by_itself():
    per_token = torch.tensor([0, 4, 1])
    pre = torch.tensor([2.0, 7.0, 1.0, 3.0, 5.0])
    pattern = SparsePattern(torch.tensor([0, 1, 2, 3, 4]), per_token, 5)
    parts = nested(pattern, pre, pre, [TopK(1), TopK(2)], 4)
    assert [part.features.tolist() for part, _ in parts] == [[1, 4], [3], [0, 2]]
    assert [part.per_token.tolist() for part, _ in parts] == [[0, 1, 1], [0, 1, 0], [0, 2, 0]]


def test_no_tokens_have_no_parts_with_entries():
    nothing = torch.zeros(0)
    unequal = SparsePattern(nothing.long(), nothing.long(), 5)
    for pattern in (unequal, SparsePattern.as_many_each(torch.zeros(0, 4).long(), 5)):
        assert [len(values) for _, values in nested(pattern, nothing, nothing, [TopK(1), TopK(2)], 4)] == [0, 0, 0]
