"""Planted absorption: 'begins with s' is feature 0; 'snake' and other words write its direction, too."""

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array

from hfsae import SAE, TopKSAEConfig
from hfsae.scores.absorption import absorption, carriers, main_features
from hfsae.scores.labelled_rows import LabelledRows
from hfsae.scores.probing import Probe, probe_concepts

D, N = 16, 4000
NAMES = ["begins with s"]


def planted_sae(n_words: int) -> SAE:
    """Features write along the axes; those of words, the first behind feature 0, also along axis 0."""
    sae = SAE.from_config(TopKSAEConfig(d_in=D, n_features=D, k=4))
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(D))
        sae.W_dec[1 : 1 + n_words, 0] = 1.0
    return sae


def planted(seed: int, n_words: int, share: float) -> LabelledRows:
    """A fifth of the tokens begins with s; each word is such a share of these, and feature 0 is silent on it."""
    drawn = np.random.default_rng(seed)
    begins = drawn.random(N) < 0.2
    word = np.where(begins, (drawn.random(N) / share).astype(int), D)
    features = np.where(drawn.random((N, D)) < 0.2, 1.0, 0.0).astype(np.float32)
    features[:, 0] = begins & (word >= n_words)
    for number in range(n_words):
        features[:, 1 + number] = word == number
    activations = features @ planted_sae(n_words).feature_directions.detach().numpy()
    activations += drawn.normal(scale=0.05, size=(N, D))
    values = {"features": csc_array(features), "coordinates": activations.astype(np.float32)}
    return LabelledRows(begins[:, None], np.arange(N) // 10, values)


def measured(n_words: int, share: float = 0.03):
    train, held_out = (planted(seed, n_words, share) for seed in (0, 1))
    probing = probe_concepts(train, held_out, NAMES, bases=["features"], n_draws=200)
    return absorption(planted_sae(n_words), held_out, NAMES, probing), held_out


def test_a_planted_absorption_is_found():
    found, held_out = measured(8)
    (one,) = found.concepts
    begins, features = held_out.labels[:, 0], held_out.values["features"].toarray()
    silent = begins & (features[:, 0] == 0)
    assert one.main == (0,) and one.probe_f1 > 0.99
    assert one.absorbed.value == pytest.approx(silent.sum() / begins.sum(), abs=0.005) and one.absorbed.value > 0.2
    assert one.silent == one.absorbed and one.absorbed.low < one.absorbed.value < one.absorbed.high
    times = {feature: int((features[:, feature] > 0).sum()) for feature in range(1, 9)}
    assert all(times[feature] == n for feature, n in one.absorbing) and len(one.absorbing) == 5
    assert found.mean == one.absorbed and found.recorded()["concepts"][NAMES[0]]["main"] == [0]


def test_a_concept_that_is_split_over_two_features_is_not_absorbed():
    """One word is a third of the tokens: with its feature the probe's F1 rises, so both stand for the concept."""
    found, _ = measured(1, share=0.33)
    (one,) = found.concepts
    assert set(one.main) == {0, 1} and one.absorbed.value == one.silent.value == 0


def test_without_absorption_there_is_none():
    found, _ = measured(0)
    (one,) = found.concepts
    assert one.main == (0,) and one.silent.value == one.absorbed.value == found.mean.value == 0


def test_a_concept_of_which_the_probe_says_nothing_is_left_out_and_told():
    train, held_out = (planted(seed, 0, 0.03) for seed in (0, 1))
    held_out.values["coordinates"][:, 0] -= 100
    probing = probe_concepts(train, held_out, NAMES, bases=["features"], n_draws=20)
    found = absorption(planted_sae(0), held_out, NAMES, probing, least_f1=0)
    assert found.mean is None and not found.concepts
    assert found.not_told == {NAMES[0]: "a linear probe says of nothing held out that has it that it does"}


def test_it_is_not_told_where_the_model_does_not_know():
    train, held_out = (planted(seed, 0, 0.03) for seed in (0, 1))
    for side in (train, held_out):
        side.values["coordinates"][:] = np.random.default_rng(0).normal(size=(N, D))
    probing = probe_concepts(train, held_out, NAMES, bases=["features"], n_draws=50)
    found = absorption(planted_sae(0), held_out, NAMES, probing)
    assert found.concepts == [] and found.mean is None
    assert found.not_told[NAMES[0]].startswith("a linear probe has F1 0.3") and "below 0.8" in found.not_told[NAMES[0]]
    assert len(absorption(planted_sae(0), held_out, NAMES, probing, least_f1=0.2).concepts) == 1


def test_carriers_are_aligned_strong_and_no_main_features():
    """By hand: the probe is along axis 0 and sums to 1 on every token."""
    directions = np.array([[1.0, 0], [1.0, 1.0], [0.09, 1.0], [0.5, 0.0]])
    features = csc_array(
        np.array([[1.0, 0, 0, 0], [0, 0.3, 0, 0], [0, 0.5, 0, 0], [0, 0, 9.0, 0], [0, 0.4, 0, 1.0], [0, 0, 0, 0]])
    )
    activations = np.tile([1.0, 0.0], (6, 1))
    # The main one alone; too weak (0.3); strong enough (0.5); not aligned (cosine 0.09); the stronger of two; none.
    found = carriers(features.tocsr(), directions, activations, np.array([1.0, 0.0]), main=[0])
    assert found.tolist() == [-1, -1, 1, -1, 3, -1]
    assert (carriers(features.tocsr(), directions, -activations, np.array([1.0, 0.0]), main=[0]) == -1).all()


def test_main_features_are_those_worth_it():
    def probe(f1, *units, sign=1.0):
        return Probe(units, np.full(len(units), sign), 0.0, f1)

    assert main_features([probe(0.5, 3), probe(0.52, 3, 4), probe(0.9, 3, 4, 5, 6, 7)]) == (3,)
    assert main_features([probe(0.5, 3), probe(0.54, 3, 4), probe(0.55, 3, 4, 5, 6, 7)]) == (3, 4)
    assert main_features([probe(0.5, 3, sign=-1.0)]) == ()


def test_a_transcoder_is_refused():
    config = TopKSAEConfig(d_in=8, n_features=16, k=2, hook_point="a.input", target_hook_point="a.output", d_out=8)
    held_out = planted(1, 0, 0.03)
    probing = probe_concepts(planted(0, 0, 0.03), held_out, NAMES, bases=["features"], n_draws=50)
    with pytest.raises(ValueError, match="and this is a transcoder"):
        absorption(SAE.from_config(config), held_out, NAMES, probing)
