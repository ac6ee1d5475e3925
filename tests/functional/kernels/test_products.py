"""Kernels against the same sums in dense float64. Without a GPU they run in Triton's interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from hfsae.functional import SparsePattern
from hfsae.functional.kernels import products
from tests.functional.products import masks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# A kernel multiplies and adds in float32 what it reads, and rounds once; both sides here round what they are given.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2e-2, "atol": 1e-2},
    torch.float16: {"rtol": 2e-3, "atol": 1e-3},
}
DTYPES = st.sampled_from(list(TOLERANCE))
WIDTHS = st.sampled_from([1, 5, 300])  # less than a program's columns, and more than them
quick = settings(max_examples=10, deadline=None, derandomize=True)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def wide(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


@quick
@given(masks(), WIDTHS, DTYPES)
def test_products_at_the_entries_are_those_of_the_dense_product(mask: Tensor, width: int, dtype: torch.dtype):
    mask = mask.to(DEVICE)
    pattern = SparsePattern.from_mask(mask)
    values, rows = random(int(mask.sum()), dtype=dtype), random(mask.shape[1], width, dtype=dtype, seed=1)
    tokens = random(mask.shape[0], width, dtype=dtype, seed=2)
    order, token_of, by_feature = pattern._feature_major
    dense = torch.zeros(mask.shape, dtype=torch.float64, device=DEVICE)
    dense[mask] = values.double()
    decoded = products.sum_rows(values, pattern.features, pattern.offsets, rows)
    grad_rows = products.sum_long_rows(values[order], token_of, products.cut(by_feature, len(order)), tokens)
    grad_values = products.inner_products(pattern.features, pattern.offsets, tokens, rows)
    total = products.sum_values(values[order], by_feature)
    expected = dense @ rows.double(), dense.T @ tokens.double(), (tokens.double() @ rows.double().T)[mask]
    dtypes = dtype, dtype, torch.float32
    for found, plain, kept in zip((decoded, grad_rows, grad_values), expected, dtypes, strict=True):
        assert found.dtype == kept
        torch.testing.assert_close(found.double(), plain, **TOLERANCE[dtype])
    torch.testing.assert_close(total.double(), dense.sum(0), rtol=1e-5, atol=1e-5)


@quick
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 4))
def test_long_segments_are_added_up_in_parts(lengths: list[int], longest: int):
    offsets = torch.tensor([0, *lengths], device=DEVICE).cumsum(0)
    entries = int(offsets[-1])
    values, table = random(entries, dtype=torch.float32), random(5, 3, dtype=torch.float32, seed=1)
    indices = torch.arange(entries, device=DEVICE) % 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_LONGEST_SEGMENT", longest)
        found = products.sum_long_rows(values, indices, products.cut(offsets, entries), table)
    torch.testing.assert_close(found, products.sum_rows(values, indices, offsets, table))


def test_narrow_floats_are_summed_in_float32():
    """1024 ones: a bfloat16 counter would stop at 256."""
    ones = torch.ones(1024, dtype=torch.bfloat16, device=DEVICE)
    offsets = torch.tensor([0, 1024], device=DEVICE)
    indices = torch.zeros(1024, dtype=torch.int64, device=DEVICE)
    table = torch.ones(1, 2, dtype=torch.bfloat16, device=DEVICE)
    assert products.sum_values(ones, offsets).item() == 1024
    assert products.sum_rows(ones, indices, offsets, table).tolist() == [[1024, 1024]]
    assert products.sum_long_rows(ones, indices, products.cut(offsets, 1024), table).tolist() == [[1024, 1024]]
    row = ones[None]
    assert products.inner_products(indices[:1], offsets // 1024, row, row).item() == 1024


def test_values_that_are_wider_than_the_table_keep_their_width():
    pattern = SparsePattern.from_mask(torch.ones(2, 3, dtype=torch.bool, device=DEVICE))
    values, table = random(6, dtype=torch.float32), random(3, 4, dtype=torch.bfloat16, seed=1)
    for found in (
        products.sum_rows(values, pattern.features, pattern.offsets, table),
        products.sum_long_rows(values, pattern.features, products.cut(pattern.offsets, 6), table),
    ):
        torch.testing.assert_close(found, values.view(2, 3) @ table.float())


def test_sums_have_the_same_bits_every_time():
    pattern = SparsePattern.from_mask(torch.rand(40, 3, device=DEVICE) < 0.7)
    order, token_of, offsets = pattern._feature_major
    values, tokens = random(len(order), dtype=torch.float32), random(40, 8, dtype=torch.float32, seed=1)
    parts = products.cut(offsets, len(order))
    first, second = (products.sum_long_rows(values[order], token_of, parts, tokens) for _ in range(2))
    assert torch.equal(first, second)
