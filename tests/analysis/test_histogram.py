import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfsae.analysis.histogram import Histograms

VALUES = st.lists(st.tuples(st.integers(0, 2), st.floats(2.0**-60, 2.0**20, width=32)), min_size=1, max_size=40)


def histograms(entries) -> Histograms:
    made = Histograms(3, 8)
    for feature, value in entries:  # one at a time, so that ranges grow often
        made.add(torch.tensor([feature]), torch.tensor([value], dtype=torch.float32))
    return made


@settings(max_examples=50)
@given(VALUES)
def test_counts_are_those_of_a_histogram_whose_range_was_known(entries):
    made = histograms(entries)
    for feature in range(3):
        values = np.array([value for i, value in entries if i == feature], dtype=np.float64)
        if not len(values):
            assert made.counts[feature].sum() == 0
            continue
        end = 2.0 ** int(made.exponents[feature])
        assert end / 2 <= values.max() < end
        counted = np.bincount((values / end * 8).astype(int), minlength=8)
        assert made.counts[feature].tolist() == counted.tolist()


@settings(max_examples=50)
@given(VALUES, st.integers(0, 40))
def test_two_parts_together_are_the_whole(entries, cut):
    whole, first, second = histograms(entries), histograms(entries[:cut]), histograms(entries[cut:])
    first.merge(second.counts, second.exponents)
    assert torch.equal(first.counts, whole.counts) and torch.equal(first.exponents, whole.exponents)


def test_an_odd_number_of_bins_cannot_be_halved():
    with pytest.raises(ValueError, match="n_bins must be even"):
        Histograms(3, 7)
