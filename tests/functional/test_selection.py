from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfsae.functional import Above, AbsTopK, BatchTopK, GroupMax, Picked, Selection, SparsePattern, TopK

quick = settings(max_examples=60)
# From 0 on bounds serve all that is here; else torch's own top-k serves what has no ties.
both_ways = pytest.mark.parametrize("bounds_pay_from", [0, 1 << 16])


def bounds_paying_from(size: int):
    return patch("hfsae.functional.selection._BOUNDS_PAY_FROM", size)


@st.composite
def pre_activations(draw: st.DrawFn, ties: bool = True) -> Tensor:
    """(N, n), mostly positive to mostly negative, of whole numbers where ties are wanted; N may be 0."""
    # Few features, and enough of them that bounds come into play; divisible by eight and by their groups, and not.
    n_features = draw(st.one_of(st.integers(1, 10), st.sampled_from([64, 72, 97, 130])))
    n_tokens = draw(st.integers(0, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    pre = torch.randn(n_tokens, n_features, generator=generator) + draw(st.sampled_from([-3.0, 0.0, 3.0]))
    return pre.round() if ties and draw(st.booleans()) else pre


def in_chunks(pre: Tensor, size: int) -> Callable[[], Iterator[Tensor]]:
    """What the encoder hands to a rule: the tokens in chunks, each in the memory of the one before."""

    def chunks() -> Iterator[Tensor]:
        made = pre.new_empty(min(size, len(pre)), pre.shape[1])
        for part in pre.split(size):
            yield made[: len(part)].copy_(part)

    return chunks


def selected(rule: Selection, pre: Tensor, size: int = 3) -> Tensor:
    """(N, n) bool from the chunked selection."""
    pattern, values = rule.select(in_chunks(pre, size), pre.shape[1])
    assert torch.equal(values, pre[pattern.tokens, pattern.features])
    assert isinstance(pattern, SparsePattern) and pattern.n_tokens == len(pre)
    counts = pre.new_zeros(pre.shape).index_put(
        (pattern.tokens, pattern.features), torch.ones(len(pattern.features)), accumulate=True
    )
    assert counts.max() <= 1 if counts.numel() else True, "an entry must not come twice"
    return counts.bool()


@both_ways
@pytest.mark.parametrize("rule_class", [TopK, AbsTopK])
@quick
@given(pre_activations(), st.data())
def test_topk_keeps_the_k_largest_of_each_token_in_chunks_as_in_one(
    bounds_pay_from: int, rule_class: type[TopK] | type[AbsTopK], pre: Tensor, data: st.DataObject
):
    rule = rule_class(data.draw(st.integers(1, pre.shape[1])))
    # A stable sort leaves equal ones in the order of their features.
    ranked = pre.abs() if rule_class is AbsTopK else pre
    first = ranked.sort(dim=1, descending=True, stable=True).indices[:, : rule.k]
    expected = torch.zeros_like(pre, dtype=torch.bool).scatter_(1, first, True)
    with bounds_paying_from(bounds_pay_from):
        assert torch.equal(rule.mask(pre), expected)
        assert torch.equal(selected(rule, pre, data.draw(st.integers(1, 9))), expected)


@quick
@given(pre_activations(), st.data())
def test_batch_topk_keeps_the_k_n_largest_positive_ones_of_the_batch(pre: Tensor, data: st.DataObject):
    rule = BatchTopK(data.draw(st.integers(1, pre.shape[1])))
    expected = min(rule.k * len(pre), int((pre > 0).sum()))
    for mask in (rule.mask(pre), selected(rule, pre, data.draw(st.integers(1, 9)))):
        assert mask.sum() == expected
        assert (pre[mask] > 0).all()
        dropped = pre[~mask & (pre > 0)]
        assert not expected or not len(dropped) or pre[mask].min() >= dropped.max()


@quick
@given(pre_activations(ties=False), st.data())
def test_batch_topk_picks_the_same_entries_from_candidates_as_from_everything(pre: Tensor, data: st.DataObject):
    rule = BatchTopK(data.draw(st.integers(1, pre.shape[1])))
    assert torch.equal(selected(rule, pre), rule.mask(pre))


def test_batch_topk_is_exact_where_one_token_holds_the_whole_budget():
    """64 tokens, k = 1: the token that takes all 64 places has far more than the first 4 candidates."""
    pre = torch.rand(64, 200, generator=torch.Generator().manual_seed(0))
    pre[17] += 10
    mask = selected(BatchTopK(1), pre, size=16)
    assert mask[17].sum() == 64 and mask.sum() == 64
    assert torch.equal(mask, BatchTopK(1).mask(pre))


@both_ways
@quick
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 8), st.booleans())
def test_topk_is_topk_where_a_token_holds_what_compares_with_nothing(
    bounds_pay_from: int, k: int, spoilt: int, tied: int, lowest: bool
):
    """Ties of one token must not make up for what is missing of another."""
    pre = torch.randn(5, 96, generator=torch.Generator().manual_seed(k))
    pre[0, :tied] = 9.0
    pre[1, :spoilt] = torch.nan
    pre[2] = -torch.inf if lowest else pre[2]
    with bounds_paying_from(bounds_pay_from):
        pattern, values = TopK(k).select(in_chunks(pre, 5), 96)
    expected = pre.topk(k).values
    torch.testing.assert_close(values.view(5, k).sort(descending=True).values, expected, equal_nan=True)
    assert pattern.per_token.tolist() == [k] * 5
    if tied >= k:
        assert sorted(pattern.features[:k].tolist()) == list(range(k))


def test_batch_topk_is_exact_where_the_first_chunk_misleads():
    """The bound is guessed on the first chunk: too high where others hold less, far too low where they hold more."""
    pre = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    for factor in (0.01, 100.0, -1.0):
        misled = torch.cat([pre[:8], factor * pre[8:]])
        assert torch.equal(selected(BatchTopK(3), misled, size=8), BatchTopK(3).mask(misled)), factor


@quick
@given(pre_activations(), st.data())
def test_what_was_picked_is_picked_again_whatever_is_shown(pre: Tensor, data: st.DataObject):
    rule, n_features = BatchTopK(data.draw(st.integers(1, pre.shape[1]))), pre.shape[1]
    pattern, kept = rule.select(in_chunks(pre, 3), n_features)
    picked = Picked(pattern.features, pattern.per_token, kept, rule.k * len(pre))
    again, same = picked.select(in_chunks(-pre, 3), n_features)
    assert same is kept and torch.equal(again.to_dense(same), pattern.to_dense(kept))
    assert torch.equal(picked.mask(-pre), rule.mask(pre))
    assert picked.load(lambda: pre) == (len(kept) / len(pre) if len(pre) else 0)


@quick
@given(pre_activations(), st.sampled_from(["number", "scalar", "vector"]))
def test_above_keeps_what_exceeds_the_threshold_and_not_what_equals_it(pre: Tensor, kind: str):
    threshold = {"number": 1.0, "scalar": torch.tensor(1.0), "vector": torch.arange(pre.shape[1]) - 1.0}[kind]
    rule = Above(threshold)
    expected = pre > threshold
    assert torch.equal(rule.mask(pre), expected)
    assert torch.equal(selected(rule, pre), expected)


@quick
@given(pre_activations(), st.data())
def test_groupmax_keeps_the_largest_of_each_group_of_neighbours(pre: Tensor, data: st.DataObject):
    n_features = pre.shape[1]
    rule = GroupMax(data.draw(st.sampled_from([k for k in range(1, n_features + 1) if n_features % k == 0])))
    for mask in (rule.mask(pre), selected(rule, pre, data.draw(st.integers(1, 9)))):
        for group in range(rule.k):
            members = slice(group * n_features // rule.k, (group + 1) * n_features // rule.k)
            assert (mask[:, members].sum(1) == 1).all()
            assert torch.equal(pre[:, members][mask[:, members]], pre[:, members].amax(1))


PRE = torch.tensor([[0.5, 1.5, 2.5, 3.5], [1.5, 2.5, 3.5, 4.5]])


@pytest.mark.parametrize(
    "rule, load",
    [
        (TopK(3), 3),
        (GroupMax(4), 4),
        (BatchTopK(3), 3),
        (Above(0.0), 4),
        (Above(2.0), 2.5),
        (Above(3.0, margin=1.0), (1.5 + 2.5) / 2),
    ],
)
def test_a_rule_says_how_many_entries_the_products_work_on(rule: Selection, load: float):
    assert rule.load(lambda: PRE) == load
