import math

import numpy as np
import pytest

from hfsae.scores.noise import ConfidenceInterval, bootstrap, interval, ranking


def mean_of(sums):
    return sums[..., 0] / sums[..., 1]


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    draws = bootstrap(np.stack([values, np.ones(400)], 1), mean_of, n_draws=4000)
    found = interval(values.mean(), draws)
    error = values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert str(ConfidenceInterval(0.5, 0.25, 0.75)) == "0.500 (0.250 to 0.750)"


def test_documents_are_drawn_whole():
    """Ten tokens that say one thing are one piece of evidence: repeated tokens make no interval narrower."""
    ones = np.random.default_rng(2).integers(0, 2, 50).astype(float)
    single = bootstrap(np.stack([ones, np.ones(50)], 1), mean_of)
    repeated = bootstrap(np.stack([10 * ones, np.full(50, 10.0)], 1), mean_of)
    assert np.array_equal(single, repeated)


def test_draws_without_a_score_do_not_count():
    assert interval(0.5, np.array([np.nan, 0.4, 0.4])) == ConfidenceInterval(0.5, 0.4, 0.4)
    assert math.isnan(interval(0.5, np.array([np.nan])).low)


def test_one_document_has_no_interval():
    with pytest.raises(ValueError, match="two documents at least, got 1"):
        bootstrap(np.ones((1, 2)), mean_of)


def test_the_noise_of_seeds_is_the_pooled_standard_deviation():
    found = ranking({"a": [0.5, 0.7], "b": [0.9, 0.8, 1.0]})
    pooled = (np.var([0.5, 0.7], ddof=1) * 1 + np.var([0.9, 0.8, 1.0], ddof=1) * 2) / 3
    assert found.within == pytest.approx(pooled**0.5)
    assert found.between == pytest.approx(np.std([0.6, 0.9], ddof=1))
    assert found.counts and list(found.means) == ["b", "a"] and str(found).startswith("b 0.900 > a 0.600")
    assert list(ranking({"a": [0.5, 0.7], "b": [0.9, 0.8]}, higher_is_better=False).means) == ["a", "b"]


def test_neighbours_within_the_noise_are_not_put_in_order():
    found = str(ranking({"a": [0.90, 0.94], "b": [0.90, 0.92], "c": [0.10, 0.14]}))
    assert found.startswith("a 0.920 ≈ b 0.910 > c 0.120 (")


def test_there_is_no_order_where_seeds_differ_more_or_are_not_known():
    assert str(ranking({"a": [0.1, 0.9], "b": [0.6, 0.6]})).startswith("no ranking: seeds differ by 0.400")
    assert str(ranking({"a": [0.1], "b": [0.9]})).startswith("no ranking: its noise is not known")
    with pytest.raises(ValueError, match="two groups"):
        ranking({"a": [0.1, 0.2]})
