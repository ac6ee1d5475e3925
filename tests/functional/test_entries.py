import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfsae.functional.entries import Entries, Grouped, few_nonzero

quick = settings(max_examples=60, deadline=None)


@st.composite
def tables(draw: st.DrawFn, columns: st.SearchStrategy[int]) -> Tensor:
    """(tokens, n) numbers of either sign, tied often."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 6)), draw(columns)
    return torch.randn(shape, generator=generator).mul(draw(st.sampled_from([2, 100]))).round()


@quick
@given(tables(st.sampled_from([64, 128, 192])), st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
def test_grouped_finds_what_reaches_each_tokens_cut(table: Tensor, dtype: torch.dtype):
    pre, cut = table.to(dtype), torch.arange(1, len(table) + 1).to(dtype)
    grouped = Grouped(pre)
    groups = grouped.reaching(cut)
    found = grouped.members(groups, cut, int(groups.sum()))
    assert found is not None and (not groups.any() or grouped.members(groups, cut, int(groups.sum()) - 1) is None)
    tokens, features, values = found
    expected = pre >= cut[:, None]
    assert torch.equal(torch.zeros_like(expected).index_put((tokens, features), torch.tensor(True)), expected)
    assert len(tokens) == expected.sum() and (tokens.diff() >= 0).all()
    assert torch.equal(values, pre[tokens, features])


@quick
@given(tables(st.sampled_from([64, 640])), st.integers(1, 20), st.integers(1, 40))
def test_grouped_bounds_the_k_th_largest_from_below(table: Tensor, k: int, groups: int):
    bound = Grouped(table).k_th(k, groups)
    if k > table.shape[1] // 8:
        assert bound is None
    else:
        assert bound is not None and (bound <= table.topk(k).values[:, -1]).all()


def test_more_groups_bound_the_k_th_largest_more_closely():
    grouped = Grouped(torch.rand(50, 6400, generator=torch.Generator().manual_seed(0)))
    few, many = grouped.k_th(8, 8), grouped.k_th(8, 800)
    assert few is not None and many is not None and (few < many).float().mean() > 0.9


@quick
@given(tables(st.integers(8, 40)), st.integers(1, 8))
def test_the_largest_of_each_token_are_those_of_a_stable_sort(table: Tensor, k: int):
    entries = Entries.where(torch.ones_like(table, dtype=torch.bool), table).largest_of_each(k)
    first = table.sort(descending=True, stable=True).indices[:, :k]
    expected = torch.zeros_like(table, dtype=torch.bool).scatter(1, first, True)
    assert torch.equal(mask_of(entries, table), expected)


@quick
@given(tables(st.integers(1, 12)), st.integers(0, 40))
def test_the_largest_of_all_are_those_of_a_stable_sort(table: Tensor, budget: int):
    entries = Entries.where(torch.ones_like(table, dtype=torch.bool), table).largest(budget)
    first = table.flatten().sort(descending=True, stable=True).indices[:budget]
    expected = torch.zeros(table.numel(), dtype=torch.bool).index_fill(0, first, True).view_as(table)
    assert torch.equal(mask_of(entries, table), expected)


def test_what_is_not_a_number_is_among_the_largest_of_all():
    table = torch.tensor([[1.0, 5.0, 3.0], [torch.nan, 4.0, 2.0]])
    entries = Entries.where(torch.ones_like(table, dtype=torch.bool), table).largest(3)
    assert entries.features.tolist() == [1, 0, 1] and entries.per_token.tolist() == [1, 2]


def test_tokens_computed_apart_are_put_where_they_belong():
    table = torch.arange(20.0).view(5, 4)
    apart = torch.tensor([1, 4])
    others = torch.ones_like(table, dtype=torch.bool).index_fill(0, apart, False)
    theirs = Entries.where(table[apart] % 2 == 0, table[apart])
    whole = Entries.where(others, table).with_rows(apart, theirs)
    expected = Entries.where(others | (table % 2 == 0), table)
    for name in ("per_token", "features", "pre"):
        assert torch.equal(getattr(whole, name), getattr(expected, name))


@pytest.mark.parametrize("columns", [8, 24, 13, 0])
def test_few_nonzero_is_nonzero(columns: int):
    mask = torch.rand(7, columns, generator=torch.Generator().manual_seed(columns)) < 0.1
    found = torch.stack(few_nonzero(mask), 1)
    assert torch.equal(found, mask.nonzero())


def mask_of(entries: Entries, table: Tensor) -> Tensor:
    assert torch.equal(entries.pre, table[entries.tokens, entries.features])
    return torch.zeros_like(table, dtype=torch.bool).index_put((entries.tokens, entries.features), torch.tensor(True))
