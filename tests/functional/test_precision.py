import pytest
import torch

from hfsae.functional import at_least_float32


@pytest.mark.parametrize(
    "given, expected",
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_narrow_floats_are_widened_and_wide_ones_left_alone(given: torch.dtype, expected: torch.dtype):
    tensor = torch.ones(2, dtype=given)
    assert at_least_float32(tensor).dtype == expected
    assert given != expected or at_least_float32(tensor) is tensor
