import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from hfsae.functional.kernels import above as module
from hfsae.functional.kernels.above import above

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
quick = settings(max_examples=15, deadline=None, derandomize=True)


def check(rows: Tensor, cut: Tensor | float) -> None:
    """The same as from a mask, in the same order."""
    rows, cut = rows.to(DEVICE), cut.to(DEVICE) if isinstance(cut, Tensor) else cut
    per_row, columns, values = above(rows, cut)
    mask = rows.float() > cut
    assert torch.equal(per_row, mask.sum(1))
    assert torch.equal(columns, mask.nonzero()[:, 1])
    assert values.dtype == rows.dtype and torch.equal(values, rows[mask])


@st.composite
def tables(draw: st.DrawFn) -> tuple[Tensor, Tensor | float]:
    n_rows, n = draw(st.integers(0, 3)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = torch.randn(n_rows, n, generator=generator).to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
    cut = draw(st.sampled_from([0.0, 1.0, 1e9, -1e9, torch.tensor(0.5), torch.randn(n, generator=generator)]))
    return rows, cut


@quick
@given(tables())
def test_what_exceeds_a_cut_is_what_a_mask_says(table: tuple[Tensor, Tensor | float]):
    check(*table)


def test_rows_of_several_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 8)
    check(torch.randn(2, 30), torch.randn(30))


def test_what_is_not_a_number_exceeds_a_cut_in_the_first_column_alone():
    rows = torch.tensor([[torch.nan, 1.0], [1.0, torch.nan], [-1.0, torch.nan]], device=DEVICE)
    per_row, columns, values = above(rows, 0.0)
    assert per_row.tolist() == [2, 1, 0] and columns.tolist() == [0, 1, 0]
    torch.testing.assert_close(values.cpu(), torch.tensor([torch.nan, 1.0, 1.0]), equal_nan=True)


def test_what_is_equal_exceeds_nothing():
    check(torch.tensor([[torch.inf, 1.0, -torch.inf]]), -1.0)
    check(torch.ones(2, 3), 1.0)
    check(torch.ones(2, 3), -torch.inf)


def test_rows_that_lie_apart_in_memory():
    check(torch.randn(20, 2).T, 0.0)
