"""Rows that hold what is no finite number."""

import pytest
import torch

from hfsae.functional.finite import refuse_non_finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_with_nan_or_infinity_are_counted_and_refused(value: float):
    rows = torch.randn(2, 4, 3)
    rows[1, 2, :2] = rows[0, 3, 1] = value
    with pytest.raises(ValueError, match="these rows hold NaN or infinity in 2 of 8 rows"):
        refuse_non_finite(rows, "these rows")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_finite_rows_pass_even_where_their_sum_overflows(dtype: torch.dtype):
    largest = torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max
    refuse_non_finite(torch.full((5, 4), largest, dtype=dtype), "these rows")
    refuse_non_finite(torch.zeros(0, 4, dtype=dtype), "these rows")
