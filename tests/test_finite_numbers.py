"""NaN and infinity among numbers of every size."""

import pytest
import torch

from hfsae.finite_numbers import all_finite, count_non_finite


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_among_many_is_found_wherever_it_stands(value: float, dtype: torch.dtype):
    for place in (0, 1, 1023, 2046):
        values = torch.full((2047,), torch.finfo(dtype).max, dtype=dtype)
        assert all_finite(values)
        values[place] = value
        assert not all_finite(values) and not all_finite(values.reshape(89, 23))


def test_numbers_that_are_learned_are_asked_without_a_gradient():
    assert not all_finite(torch.ones(3, requires_grad=True)).requires_grad


def test_nothing_is_finite_and_rows_are_counted_once():
    assert all_finite(torch.zeros(0, 4)) and all_finite(torch.tensor([1, 2]))
    rows = torch.zeros(2, 3, 4)
    rows[0, 1] = torch.nan
    rows[1, 2, 3] = -torch.inf
    assert count_non_finite(rows) == 2
