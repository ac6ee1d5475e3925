import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfsae.functional.rounding import LARGEST, ProductError, narrowed_rows


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 300), st.sampled_from([1e-40, 1e-20, 1.0, 1e15]))
def test_a_product_of_the_rounded_is_off_by_no_more_than_is_said(seed: int, width: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(4, width, generator=generator) * scale, torch.randn(9, width, generator=generator)
    narrow_x, narrow_weight = narrowed_rows(x, 4), narrowed_rows(weight, 16)
    error = ProductError(x, narrow_x, weight, narrow_weight)
    exact = x.double() @ weight.double().T
    rounded = narrow_x.float() @ narrow_weight[:9].float().T
    assert ((rounded.double() - exact).abs() <= error.off[:, None]).all()
    assert (exact.abs() <= error.reach[:, None]).all()
    if scale >= 1:  # of numbers that hardly are any, less is said
        assert (error.off <= error.reach * 2.0**-7).all(), "a bound that is far away is of no use"


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_of_rows_that_are_not_finite_nothing_is_said(spoilt: float):
    x, weight = torch.ones(2, 3), torch.ones(2, 3)
    x[1, 0] = spoilt
    error = ProductError(x, narrowed_rows(x, 2), weight, narrowed_rows(weight, 2))
    assert error.off[0].isfinite() and not error.off[1].isfinite() and not error.reach[1] < LARGEST


def test_rows_are_rounded_to_nearest_and_what_is_left_is_0():
    rows = torch.tensor([[1 + 2.0**-9, -(1 + 3 * 2.0**-8)]])
    narrow = narrowed_rows(rows, 3)
    assert narrow.dtype == torch.bfloat16 and narrow.shape == (3, 32)
    assert narrow[0, :2].tolist() == [1.0, -(1 + 2.0**-6)]
    assert narrow.count_nonzero() == 2
    assert narrowed_rows(rows, 3, 8).shape == (3, 8)
    assert narrowed_rows(torch.ones(1, 32), 1).shape == (1, 64), "one column at least is left"
