import math

import pytest
import torch

from hfsae.functional.close_rows import closest_cosines, comparisons


def rows(n: int, d: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(dtype)


def angle(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def test_by_hand():
    """Of directions at 0, 10, 60 and 200 degrees, the closest are 10, 10, 50 and 140 degrees away."""
    found = closest_cosines(torch.tensor([angle(0), angle(10), angle(60), angle(200)]) * 3, step=0)
    expected = [math.cos(math.radians(10))] * 2 + [math.cos(math.radians(50)), 0.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_row_without_another_is_close_to_none():
    assert closest_cosines(rows(1), step=0).tolist() == [0.0]


def test_the_gradient_reaches_both_rows():
    own = rows(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda own: closest_cosines(own, step=0).square().sum(), (own,))
    closest_cosines(own, step=0)[0].backward()
    assert (own.grad.norm(dim=1) > 0).sum() == 2


def test_each_row_is_held_against_those_of_a_group_which_changes_with_the_step():
    directions = torch.nn.functional.normalize(rows(23), dim=1)
    cosines = (directions @ directions.T).fill_diagonal_(-1.0)
    exact = cosines.amax(1).relu()
    by_step = torch.stack([closest_cosines(rows(23), step=step, group=6) for step in range(200)])
    assert (by_step <= exact + 1e-9).all() and not torch.equal(by_step[0], by_step[1])
    torch.testing.assert_close(by_step.amax(0), exact)  # all meet in the end
    torch.testing.assert_close(closest_cosines(rows(23), step=7, group=6), by_step[7], rtol=0, atol=0)


def test_groups_are_of_one_size_or_one_less_and_the_pairs_are_counted():
    assert comparisons(10, group=4) == 4 * 4 + 3 * 3 + 3 * 3
    assert comparisons(2048) == 4 * 512**2


def test_narrow_rows_are_compared_in_float32():
    assert closest_cosines(rows(4, dtype=torch.bfloat16), step=0).dtype == torch.float32


def test_an_example_that_is_not_a_number_stays_one():
    own = rows(4)
    own[1, 0] = torch.nan
    assert closest_cosines(own, step=0).isnan().any()
