"""NaN in, NaN out: tokens that hold NaN, on both paths, beside tokens that do not."""

import pytest
import torch
from torch import Tensor

from hfsae.functional import Above, BatchTopK, GroupMax, Selection, SparsePattern, TopK, encode
from hfsae.functional.not_a_number import apart_from_nan

RULES = {
    "above": Above(0.0),
    "each": Above(torch.linspace(0, 1, 32)),
    "margin": Above(torch.full((32,), 0.5), margin=0.25),
    "topk": TopK(3),
    "batch_topk": BatchTopK(3),
    "groupmax": GroupMax(4),
}


def leaves(dtype: torch.dtype, spoilt: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (6, 8), (32, 8), (32,), (8,)
    x, weight, bias, center = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    x[spoilt, 5] = torch.nan
    return x, weight, bias, center


def dense(x: Tensor, rule: Selection, path: str, *others: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, n) and what a decoder of ones writes (N, 4)."""
    pattern, pre = encode(x, *others, rule, path)  # type: ignore[arg-type]
    values = pattern.keep(pre.relu())
    return pattern.to_dense(values), pattern.decode(values, torch.ones(32, 4, dtype=values.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("path", ["dense", "sparse", "auto"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("spoilt", [[0], [2, 3], [5], list(range(6))], ids=str)
def test_a_token_that_holds_nan_writes_nan_and_the_others_are_as_without_it(spoilt, rule, path, dtype):
    x, *others = leaves(dtype, spoilt)
    features, written = dense(x, rule, path, *others)
    whole = [token for token in range(len(x)) if token not in spoilt]
    assert written[spoilt].isnan().all()
    assert features[spoilt].isnan().any(1).all()
    alone, alone_written = dense(x[whole], rule, path, *others)
    if not isinstance(rule, BatchTopK):
        torch.testing.assert_close(features[whole], alone)
    torch.testing.assert_close(written[whole].isfinite(), torch.ones_like(alone_written, dtype=torch.bool))
    assert (features[whole] > 0).any(1).sum() >= (alone > 0).any(1).sum()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_token_of_infinities_writes_no_finite_numbers(rule, value):
    """Infinities of both signs meet in every pre-activation, which is NaN: such a token had the offset alone."""
    x, *others = leaves(torch.float32, [])
    x[2] = value
    features, written = dense(x, rule, "sparse", *others)
    assert written[2].isnan().all() and features[2].isnan().any()
    assert written[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_numbers_whose_sum_is_too_large_are_no_infinities(dtype):
    large = torch.full((3, 8), torch.finfo(dtype).max / 2, dtype=dtype)
    assert large.sum(1).isinf().all()
    pattern = SparsePattern(torch.arange(3), torch.ones(3, dtype=torch.int64), 4)
    assert apart_from_nan(large, lambda x: (pattern, x[:, 0]))[0] is pattern  # all of it was asked about at once


def test_a_batch_of_nothing_but_nan_has_one_entry_a_token():
    x, *others = leaves(torch.float32, list(range(6)))
    pattern, pre = encode(x, *others, Above(0.0), "sparse")
    assert pattern.per_token.tolist() == [1] * 6 and pre.isnan().all()  # type: ignore[attr-defined]


def test_gradients_of_a_step_with_nan_are_nan():
    x, *others = leaves(torch.float32, [1])
    weight, bias, center = (leaf.requires_grad_() for leaf in others)
    pattern, pre = encode(x, weight, bias, center, Above(0.0), "sparse")
    pattern.decode(pre.relu(), torch.ones(32, 4)).sum().backward()
    assert weight.grad is not None and weight.grad.isnan().any()


def test_nothing_that_is_infinite_is_taken_for_finite():
    x, *others = leaves(torch.float32, [])
    x[2, 5], x[3, 4], x[3, 5] = torch.inf, torch.inf, -torch.inf
    _, written = dense(x, Above(0.0), "sparse", *others)
    assert not written[2:4].isfinite().any() and written[:2].isfinite().all()
