import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton")

from hfsae.functional.kernels import largest as module
from hfsae.functional.kernels.largest import group_size, largest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
quick = settings(max_examples=15, deadline=None, derandomize=True)


def check(rows: Tensor, k: int) -> None:
    """The numbers chosen are the k largest, each column at most once."""
    columns = largest(rows.to(DEVICE), k).cpu()
    assert columns.shape == (len(rows), k) and columns.dtype == torch.int64
    assert all(len(set(row)) == k for row in columns.tolist())
    chosen = rows.gather(1, columns).float().sort(descending=True).values
    assert torch.equal(chosen, rows.float().sort(descending=True).values[:, :k])


@st.composite
def tables(draw: st.DrawFn) -> tuple[Tensor, int]:
    n = draw(st.integers(1, 90))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = torch.randn(draw(st.integers(0, 3)), n, generator=generator) * draw(
        st.sampled_from([0.0, 1e-30, 1.0, 1e30])
    )
    if draw(st.booleans()):
        rows = rows.round(decimals=0)  # many ties
    if draw(st.booleans()):
        rows[:, :: draw(st.integers(1, 3))] = -torch.inf
    return rows.to(draw(st.sampled_from([torch.float32, torch.bfloat16]))), draw(st.integers(1, n))


@quick
@given(tables())
def test_the_largest_are_those_of_a_sort(table: tuple[Tensor, int]):
    check(*table)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (64, 64), (64, 1), (1000, 9)])
def test_widths_that_are_no_power_of_two_k_of_one_and_k_of_all(n: int, k: int, dtype: torch.dtype):
    check(torch.randn(1, n).to(dtype), k)


def test_of_equal_numbers_as_many_as_are_wanted_are_taken():
    check(torch.zeros(2, 100), 7)
    check(torch.tensor([[0.0, -0.0] * 30, [-1.0] * 60]), 5)


@pytest.mark.parametrize("n", [20, 400])
def test_rows_that_are_not_wanted_are_left_out(n: int):
    """Their columns are some all the same, so that something may be gathered there."""
    rows = torch.randn(3, n)
    rows[1] = torch.nan
    columns = largest(rows.to(DEVICE), 4, torch.tensor([True, False, True], device=DEVICE)).cpu()
    assert ((columns >= 0) & (columns < n)).all()
    assert torch.equal(columns[[0, 2]].sort().values, rows[[0, 2]].topk(4).indices.sort().values)


def test_rows_that_lie_apart_in_memory():
    check(torch.randn(40, 2).T, 4)


def test_more_candidates_than_registers_hold_go_another_way(monkeypatch):
    monkeypatch.setattr(module, "_MOST_CANDIDATES", 8)
    check(torch.randn(2, 40), 4)
    check(torch.randn(2, 12), 11)


def test_groups_are_as_large_as_leaves_the_least_to_be_looked_at_twice():
    for n, k in [(32768, 32), (12288, 32), (131072, 64), (12288, 128)]:
        looked_at = {group: -(-n // group) + k * group for group in (2, 4, 8, 16, 32, 64, 128)}
        assert looked_at[group_size(n, k)] <= 1.1 * min(looked_at.values())
    assert group_size(10, 10) == 2
