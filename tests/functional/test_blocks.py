import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfsae.functional import blocks
from hfsae.functional.blocks import SumLike, in_blocks, where_positive, where_within


@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 12))
def test_blocks_cover_the_rows_once_and_in_order(n_rows: int, width: int, size: int):
    values, row = torch.arange(n_rows * width).view(n_rows, width), torch.arange(width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_BLOCK", size)
        parts = list(in_blocks(values, values.flip(0), row))
    assert torch.equal(torch.cat([values[:0], *(part[0] for part in parts)]), values)
    assert torch.equal(torch.cat([values[:0], *(part[1] for part in parts)]), values.flip(0))
    assert all(part[2] is row for part in parts)
    assert all(len(part[0]) == 1 or part[0].numel() <= size for part in parts)


def test_no_block_has_more_rows_than_asked_for():
    assert [len(part) for (part,) in in_blocks(torch.ones(5, 2), most_rows=2)] == [2, 2, 1]


@pytest.mark.parametrize("shape", [(4, 3), (3,), ()])
def test_sums_take_the_shape_of_the_parameter(shape: tuple[int, ...]):
    values, parameter = torch.randn(4, 3, dtype=torch.float64), torch.ones(shape)
    total = SumLike(parameter)
    for (part,) in in_blocks(values, most_rows=3):
        total.add(part)
    assert total.total.dtype == torch.float32
    torch.testing.assert_close(total.total, values.float().sum_to_size(shape))


def test_cuts_are_strict_on_both_sides():
    margin = torch.tensor([-1.0, -0.5, -0.4, 0.0, 0.4, 0.5, 1.0])
    values, out = torch.full_like(margin, 3.0), torch.empty(7)
    above, within = torch.tensor([0.0, 0, 0, 0, 3, 3, 3]), torch.tensor([0.0, 0, 3, 3, 3, 0, 0])
    assert torch.equal(where_positive(values, margin), above) and torch.equal(
        where_within(values, margin, 0.5), within
    )
    assert torch.equal(where_positive(values, margin, out=out), above) and torch.equal(out, above)
