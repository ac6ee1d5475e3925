"""A loaded SAE is checked on a few texts; `test_causes.py` has the mistakes that are named."""

import inspect
import logging

import pytest
import torch

from hfsae import SAE, load_saes, self_check
from hfsae.evaluation.self_check import Figures, _helps
from tests.evaluation.tiny import batches, language_model, make_sae

TEXTS = [inspect.getsource(logging)[:8_000]]
WHERE_IT_READS = "transformer.h.1.output"


@pytest.fixture(scope="module")
def model(trained_folder):
    return SAE.from_pretrained(trained_folder).load_base_model()


@pytest.fixture
def sae(trained_folder) -> SAE:
    return SAE.from_pretrained(trained_folder)


def check(sae, model):
    return self_check(sae, model, TEXTS, max_tokens=3000)


def test_an_sae_that_is_used_as_it_was_trained_fits(sae, model):
    outcome = check(sae, model)
    assert outcome.ok and outcome.causes == () and "This fits." in str(outcome)
    assert outcome.recorded.explained_variance == sae.config.metrics["explained_variance"]
    assert 1000 < outcome.n_tokens <= 3000


def test_another_hook_point_is_found_out(sae, model):
    place = sae.config.hook_point
    sae.config.hook_point = place.replace(".1.", ".3.")
    outcome = check(sae, model)
    assert not outcome.ok and "does not fit" in str(outcome)
    assert any(
        f"Wrong hook point: it fits resid_post.1; set config.hook_point = {place!r}" in c for c in outcome.causes
    )


def test_changed_settings_are_found_out(sae, model):
    sae.config.k = 1
    outcome = check(sae, model)
    assert not outcome.ok and "The settings are not the measured ones: k changed since." in outcome.causes


def test_changed_weights_are_found_out(sae, model):
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec.flip(0))
    outcome = check(sae, model)
    assert not outcome.ok and outcome.causes[0].startswith("The weights are not the measured ones")


def test_every_transcoder_of_a_set_fits_and_one_in_the_place_of_another_does_not(trained_set, model):
    saes = load_saes(trained_set)
    assert len(saes) == 2
    for sae in saes.values():
        outcome = check(sae, model)
        assert outcome.ok and outcome.recorded.explained_variance == sae.config.metrics["explained_variance"]
    first, second = saes.values()
    first.load_state_dict(second.state_dict())
    assert not check(first, model).ok


@pytest.mark.slow
def test_another_commit_of_the_language_model_is_named(sae, model):
    sae.config.hook_point = sae.config.hook_point.replace(".1.", ".3.")
    sae.config.base_model_revision, model.config._commit_hash = "a" * 40, "b" * 40
    assert "at commit bbbbbbbbbbbb, the SAE was trained on aaaaaaaaaaaa" in check(sae, model).causes[1]
    model.config._commit_hash = None


def test_without_recorded_figures_it_must_explain_something():
    outcome = self_check(make_sae(), language_model(), batches())
    assert not outcome.ok and outcome.recorded == Figures(None, None)
    assert "recorded: nothing to compare with" in str(outcome)


def test_an_sae_of_another_model_is_refused(sae):
    with pytest.raises(ValueError, match="d_in=128: it belongs to"):
        self_check(sae, language_model(), batches())


@pytest.mark.parametrize(
    "l0, explained, fits",
    [(32, 0.93, True), (36, 0.91, True), (24, 0.99, True), (32, 0.88, False), (60, 0.93, False), (15, 0.93, False)],
)
def test_what_fits(l0, explained, fits):
    assert Figures(l0, explained).fit(Figures(32, 0.93)) is fits
    assert Figures(1.5, explained).fit(Figures(0.8, None)) is (explained >= 0.5)


@pytest.mark.parametrize(
    "measured, trial, helps",
    [
        ((8, 0.31), (8, 0.39), False),  # fits a recorded 0.48, but by hardly more than what was measured
        ((8, 0.31), (8, 0.41), True),
        ((8, -0.90), (8, 0.0), False),
        ((8, -0.90), (8, 0.1), True),
        ((8, 0.31), (8, 0.30), False),
        ((30, 0.50), (8, 0.47), True),  # too many features explain enough: what brings their number back helps
        ((30, 0.50), (20, 0.50), False),
    ],
)
def test_what_helps(measured, trial, helps):
    assert _helps(Figures(*trial), Figures(*measured), Figures(8, 0.48)) is helps
