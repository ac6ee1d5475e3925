"""Probes against scikit-learn, against brute force, and on planted cases whose answer is known."""

import numpy as np
import pytest
from scipy.sparse import csc_array
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, precision_recall_curve

from hfsae.scores.labelled_rows import LabelledRows
from hfsae.scores.probing import LINEAR, Moments, best_threshold, forward, probe_concepts

N, UNITS = 2000, 60


def rows(seed: int, share: float = 0.1) -> LabelledRows:
    """Feature 7 is the concept itself; coordinate 3 is it with noise; neurons know nothing."""
    drawn = np.random.default_rng(seed)
    has = drawn.random(N) < share
    features = np.where(drawn.random((N, UNITS)) < 0.1, drawn.random((N, UNITS)), 0).astype(np.float32)
    features[:, 7] = has * (0.5 + drawn.random(N))
    coordinates = drawn.normal(size=(N, 8)).astype(np.float32)
    coordinates[:, 3] += 2 * has
    neurons = drawn.normal(size=(N, 40)).astype(np.float32)
    values = {"features": csc_array(features), "coordinates": coordinates, "neurons": neurons}
    return LabelledRows(has[:, None], np.arange(N) // 20, values)


@pytest.fixture(scope="module")
def probing():
    return probe_concepts(rows(0), rows(1), ["planted"], n_draws=200)


def test_a_feature_that_is_the_concept_scores_1(probing):
    assert probing.units(("features", 1), 0) == [7]
    for k in (1, 2, 5):
        (f1,) = probing.f1("features", k)
        assert f1.value == f1.low == f1.high == 1 and probing.mean_accuracy("features", k).value == 1


def test_units_that_know_nothing_score_as_chance_does(probing):
    """Always to say yes has an F1 of 2p / (1 + p), and the best of many that guess has little more."""
    share = probing.share[0]
    assert probing.f1("neurons", 1)[0].value == pytest.approx(2 * share / (1 + share), abs=0.03)


def test_a_better_basis_is_above_on_every_draw(probing):
    above = probing.above(("features", 1), ("neurons", 1))
    assert (above.value, above.low, above.high) == (1, 1, 1)
    assert probing.above(("neurons", 1), ("features", 1)).high == 0


def test_the_linear_probe_is_that_of_scikit_learn(probing):
    train, held_out = rows(0), rows(1)
    mean, spread = train.values["coordinates"].mean(0), train.values["coordinates"].std(0)
    x, y = ((side.values["coordinates"] - mean) / spread for side in (train, held_out))
    model = LogisticRegression(max_iter=1000).fit(x, train.labels[:, 0])
    precision, recall, thresholds = precision_recall_curve(train.labels[:, 0], model.decision_function(x))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    says = model.decision_function(y) >= thresholds[f1[:-1].argmax()]
    assert probing.f1(LINEAR, 8)[0].value == pytest.approx(f1_score(held_out.labels[:, 0], says), abs=0.005)
    expected = accuracy_score(held_out.labels[:, 0], says)
    assert probing.accuracy(LINEAR, 8)[0].value == pytest.approx(expected, abs=0.003)


def test_counts_are_those_of_scikit_learn(probing):
    held_out = rows(1)
    for basis, k in (("coordinates", 1), ("coordinates", 2), ("neurons", 5), ("features", 2)):
        says = probing.probes[basis, k][0].says(held_out.values[basis])
        assert probing.f1(basis, k)[0].value == pytest.approx(f1_score(held_out.labels[:, 0], says))


def test_the_best_threshold_is_the_best_of_all_there_are():
    drawn = np.random.default_rng(0)
    for size in (2, 5, 60):
        says, labels = drawn.integers(0, 6, size).astype(float), drawn.random(size) < 0.4
        labels[0] = True
        threshold, f1 = best_threshold(says, labels)
        tried = [f1_score(labels, says >= t) for t in [-1, *np.unique(says)]]
        assert f1 == pytest.approx(max(tried)) and f1_score(labels, says >= threshold) == pytest.approx(f1)


def test_a_column_of_zeros_alone_says_yes_to_all():
    assert best_threshold(np.zeros(4), np.array([True, False, False, True])) == (-np.inf, pytest.approx(2 / 3))


def test_forward_selection_lessens_the_squared_error_most():
    drawn = np.random.default_rng(3)
    x = drawn.normal(size=(200, 6)) @ drawn.normal(size=(6, 6))
    y = x @ drawn.normal(size=6) + drawn.normal(size=200)
    x, y = x - x.mean(0), y - y.mean()

    def error(columns):
        return np.linalg.lstsq(x[:, columns], y, rcond=None)[1][0]

    expected = [2]
    while len(expected) < 5:
        rest = [column for column in range(6) if column not in expected]
        expected.append(min(rest, key=lambda column: error([*expected, column])))
    assert forward(x.T @ x, x.T @ y, 2, 5) == expected


def test_forward_selection_ends_where_nothing_is_left():
    x = np.array([[1.0, 2.0], [-1.0, -2.0]])
    assert forward(x.T @ x, x.T @ np.array([1.0, -1.0]), 0, 2) == [0]


def test_candidates_are_those_whose_means_differ_most_be_they_sparse_or_in_parts():
    one = rows(5)
    dense = one.values["features"].toarray().astype(np.float64)
    has = one.labels[:, 0]
    distance = np.abs(dense[has].mean(0) - dense[~has].mean(0)) / dense.std(0)
    expected = np.argsort(-distance)[:20].tolist()
    assert Moments(one.values["features"], one.labels).candidates()[0].tolist() == expected
    moments = Moments()
    for part in (slice(0, 700), slice(700, None)):
        moments.add(dense[part].astype(np.float32), one.labels[part])
    assert moments.candidates()[0].tolist() == expected


def test_two_features_that_share_a_concept_score_more_together():
    sides = []
    for seed in (0, 1):
        side = rows(seed)
        features = side.values["features"].toarray()
        which = np.random.default_rng(seed + 10).random(N) < 0.5
        features[:, 9] = np.where(which, features[:, 7], 0)
        features[:, 7] = np.where(which, 0, features[:, 7])
        sides.append(LabelledRows(side.labels, side.documents, {"features": csc_array(features)}))
    found = probe_concepts(*sides, ["planted"], linear=False, n_draws=50)
    assert found.f1("features", 1)[0].value < 0.8 and found.f1("features", 2)[0].value > 0.98
    assert set(found.units(("features", 2), 0)) == {7, 9}


def test_numbers_of_kept_units_are_told():
    found = probe_concepts(rows(0), rows(1), ["planted"], numbers={"features": np.arange(UNITS) + 100}, n_draws=50)
    assert found.recorded()["concepts"]["planted"]["features, k = 1"]["units"] == [107]


def test_intervals_hold_the_score_of_other_text_nineteen_times_in_twenty():
    train = rows(0)
    inside = 0
    truth = np.mean(
        [
            probe_concepts(train, rows(s), ["p"], bases=["coordinates"], ks=[1], linear=False, n_draws=1)
            .f1("coordinates", 1)[0]
            .value
            for s in range(100, 130)
        ]
    )
    for seed in range(1, 31):
        found = probe_concepts(train, rows(seed), ["p"], bases=["coordinates"], ks=[1], linear=False, n_draws=200)
        f1 = found.f1("coordinates", 1)[0]
        inside += f1.low <= truth <= f1.high
    assert inside >= 25


def test_rare_concepts_are_left_out_and_none_left_is_refused():
    both = [rows(seed) for seed in (0, 1)]
    sides = [
        LabelledRows(np.stack([side.labels[:, 0], np.arange(N) < 29], 1), side.documents, side.values) for side in both
    ]
    found = probe_concepts(*sides, ["planted", "rare"], n_draws=50)
    assert (found.concepts, found.left_out) == (["planted"], ["rare"])
    for labels in (np.ones((N, 1), bool), np.zeros((N, 1), bool)):
        with pytest.raises(ValueError, match="none of 1 concepts has 30 rows that have it and 30 that lack it"):
            probe_concepts(LabelledRows(labels, both[0].documents, both[0].values), both[1], ["one class"])
