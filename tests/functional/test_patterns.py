from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfsae.functional import DensePattern, SparsePattern
from tests.functional.products import TOLERANCE, both, masks

WIDTH = 5
DTYPES = st.sampled_from([torch.float32, torch.float64])
quick = settings(max_examples=40)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@quick
@given(masks(), DTYPES)
def test_decode_and_both_gradients_are_those_of_the_dense_product(mask: Tensor, dtype: torch.dtype):
    values, rows = random(*mask.shape, dtype=dtype), random(mask.shape[1], WIDTH, dtype=dtype, seed=1)
    weight = random(mask.shape[0], WIDTH, dtype=dtype, seed=2)
    plain_values = (values * mask).requires_grad_()
    plain_rows = rows.clone().requires_grad_()
    expected = plain_values @ plain_rows
    expected.backward(weight)
    for pattern, entries in both(mask, values):
        leaf = rows.clone().requires_grad_()
        decoded = pattern.decode(entries, leaf)
        decoded.backward(weight)
        grad = entries.grad if isinstance(pattern, DensePattern) else pattern.to_dense(entries.grad)
        torch.testing.assert_close(decoded, expected, **TOLERANCE[dtype])
        torch.testing.assert_close(leaf.grad, plain_rows.grad, **TOLERANCE[dtype])
        torch.testing.assert_close(grad * mask, plain_values.grad * mask, **TOLERANCE[dtype])


@quick
@given(masks(), DTYPES)
def test_gather_gives_each_entry_its_features_parameter_and_adds_up_its_gradient(mask: Tensor, dtype: torch.dtype):
    parameter, weight = random(mask.shape[1], dtype=dtype), random(*mask.shape, dtype=dtype, seed=1)
    for pattern, entries in both(mask, weight):
        leaf = parameter.clone().requires_grad_()
        (entries.detach() * pattern.gather(leaf)).sum().backward()
        torch.testing.assert_close(leaf.grad, (weight * mask).sum(0), **TOLERANCE[dtype])


@quick
@given(masks(), DTYPES)
def test_total_adds_up_each_features_values_and_gives_its_gradient_to_all_of_them(mask: Tensor, dtype: torch.dtype):
    values, weight = random(*mask.shape, dtype=dtype) * mask, random(mask.shape[1], dtype=dtype, seed=1)
    for pattern, entries in both(mask, values):
        (pattern.total(entries) @ weight).backward()
        torch.testing.assert_close(pattern.total(entries), values.sum(0), **TOLERANCE[dtype])
        assert entries.grad is not None
        grad = entries.grad if isinstance(pattern, DensePattern) else pattern.to_dense(entries.grad)
        torch.testing.assert_close(grad * mask, weight * mask, **TOLERANCE[dtype])


@quick
@given(masks(), DTYPES)
def test_the_four_sparse_products(mask: Tensor, dtype: torch.dtype):
    pattern = SparsePattern.from_mask(mask)
    dense = random(*mask.shape, dtype=dtype) * mask
    values = dense[pattern.tokens, pattern.features]
    tokens = random(mask.shape[0], WIDTH, dtype=dtype, seed=1)
    rows = random(mask.shape[1], WIDTH, dtype=dtype, seed=2)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(pattern.token_sum(values, rows), dense @ rows, **tolerance)
    torch.testing.assert_close(pattern.feature_sum(values, tokens), dense.T @ tokens, **tolerance)
    torch.testing.assert_close(pattern.feature_total(values), dense.sum(0), **tolerance)
    torch.testing.assert_close(pattern.sampled_product(tokens, rows), (tokens @ rows.T)[mask], **tolerance)


@quick
@given(masks())
def test_counts_padding_and_dense_form_agree_between_the_patterns(mask: Tensor):
    values = random(*mask.shape, dtype=torch.float64)
    values[:, -1] = 0.0  # an entry whose value is 0 does not fire
    for pattern, entries in both(mask, values):
        expected = values * mask
        torch.testing.assert_close(pattern.to_dense(entries), expected)
        torch.testing.assert_close(pattern.tokens_firing(entries), (expected != 0).sum(0))
        padded, features = pattern.padded(entries)
        assert padded.shape == features.shape == (len(mask), int((expected != 0).sum(1).max()) if len(mask) else 0)
        torch.testing.assert_close(torch.zeros_like(expected).scatter_add(1, features, padded), expected)
        assert ((padded != 0) | (features == 0)).all()


@quick
@given(masks(), st.data())
def test_blocks_of_features_are_patterns_that_make_up_the_whole(mask: Tensor, data: st.DataObject):
    n_features = mask.shape[1]
    cuts = sorted(data.draw(st.sets(st.integers(1, n_features - 1), max_size=3))) if n_features > 1 else []
    sizes = [end - start for start, end in pairwise([0, *cuts, n_features])]
    values, rows = random(*mask.shape, dtype=torch.float64), random(n_features, WIDTH, dtype=torch.float64, seed=1)
    for pattern, entries in both(mask, values):
        blocks = pattern.blocks(entries, sizes)
        dense = [block.to_dense(block.keep(of_block)) for block, of_block in blocks]
        torch.testing.assert_close(torch.cat(dense, dim=1), values * mask)
        decoded = [block.decode(v, part) for (block, v), part in zip(blocks, rows.split(sizes), strict=True)]
        torch.testing.assert_close(sum(decoded), (values * mask) @ rows)
        sum(decoded).sum().backward()
        assert entries.grad.shape == entries.shape


@quick
@given(masks().filter(len))
def test_the_order_of_a_tokens_entries_does_not_matter(mask: Tensor):
    ordered = SparsePattern.from_mask(mask)
    backwards = [row.flip(0) for row in ordered.features.split(ordered.per_token.tolist())]
    pattern = SparsePattern(torch.cat(backwards), ordered.per_token, ordered.n_features)
    tokens, rows = random(len(mask), WIDTH, dtype=torch.float64), random(mask.shape[1], WIDTH, dtype=torch.float64)
    dense = random(*mask.shape, dtype=torch.float64, seed=3) * mask
    values = dense[pattern.tokens, pattern.features]
    torch.testing.assert_close(pattern.to_dense(values), dense)
    torch.testing.assert_close(pattern.feature_sum(values, tokens), dense.T @ tokens)
    torch.testing.assert_close(
        pattern.sampled_product(tokens, rows), (tokens @ rows.T)[pattern.tokens, pattern.features]
    )


def test_sparse_decode_and_gather_pass_gradcheck():
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    pattern = SparsePattern.from_mask(mask)
    values = random(5, dtype=torch.float64).requires_grad_()
    rows = random(3, 2, dtype=torch.float64).requires_grad_()
    parameter = random(3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, r: pattern.decode(v, r), (values, rows))
    assert torch.autograd.gradcheck(lambda p: pattern.gather(p) * values.detach(), (parameter,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_floats_are_summed_in_float32(dtype: torch.dtype):
    """4096 tokens of value 1 for one feature: a bfloat16 counter would stop at 256, a float16 one at 2048."""
    pattern = SparsePattern.from_mask(torch.ones(4096, 1, dtype=torch.bool))
    ones = torch.ones(4096, dtype=dtype)
    assert pattern.feature_total(ones).item() == 4096
    assert pattern.feature_sum(ones, torch.ones(4096, 2, dtype=dtype)).tolist() == [[4096, 4096]]
    wide = torch.ones(4096, 4096, dtype=dtype)
    assert pattern.sampled_product(wide, wide[:1]).unique().item() == 4096


@pytest.mark.parametrize("transpose", [False, True])
def test_gradients_may_arrive_in_any_memory_layout(transpose: bool):
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    grad = random(6, WIDTH, dtype=torch.float64)
    if transpose:
        grad = grad.T.contiguous().T
        assert not grad.is_contiguous()
    pattern = SparsePattern.from_mask(mask)
    dense = random(6, 4, dtype=torch.float64, seed=1) * mask
    rows = random(4, WIDTH, dtype=torch.float64, seed=2).requires_grad_()
    values = dense[pattern.tokens, pattern.features].requires_grad_()
    pattern.decode(values, rows).backward(grad)
    torch.testing.assert_close(rows.grad, dense.T @ grad)
    torch.testing.assert_close(values.grad, (grad @ rows.detach().T)[mask])


@quick
@given(st.integers(0, 600), st.sampled_from([8, 12, 64]), st.floats(0, 1))
def test_a_dense_pattern_counts_tokens_of_any_number(n_tokens: int, n_features: int, density: float):
    """Past 255 tokens a byte would overflow."""
    generator = torch.Generator().manual_seed(n_tokens)
    values = (torch.rand(n_tokens, n_features, generator=generator) <= density).float()
    expected = values.long().sum(0)
    pattern = DensePattern.from_mask(values > 0)
    assert torch.equal(pattern.tokens_firing(values), expected)
    assert torch.equal(pattern.tokens_firing(values.T.contiguous().T), expected), "column by column in memory"


@quick
@given(masks(), DTYPES, st.floats(0, 1))
def test_leaving_zeros_out_changes_no_product(mask: Tensor, dtype: torch.dtype, share: float):
    pattern = SparsePattern.from_mask(mask)
    values = random(len(pattern.features), dtype=dtype)
    values[torch.rand(len(values), generator=torch.Generator().manual_seed(3)) < share] = 0.0
    active, kept = pattern.without_zeros(values)
    assert torch.equal(active.to_dense(kept), pattern.to_dense(values))
    assert len(kept) == torch.count_nonzero(values) or torch.count_nonzero(values) > 0.75 * len(values)
