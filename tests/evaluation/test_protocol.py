"""What ties figures to weights and settings."""

import json

import pytest

from hfsae import SAE
from hfsae.evaluation import evaluate_sae, weights_sha256
from hfsae.evaluation.protocol import changed_settings
from tests.evaluation.tiny import batches, language_model, make_sae


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"k": 2}, ["k"]),
        ({"input_transform": "center", "exclude_positions": []}, ["exclude_positions", "input_transform"]),
        ({"hook_point": "transformer.h.0.output"}, ["hook_point"]),
        ({"base_model": "org/renamed", "context_length": 7, "training": {}}, []),
    ],
)
def test_settings_that_figures_depend_on_are_known_after_saving(tmp_path, settings, changed):
    """An SAE with another k has the same weights, and other figures."""
    sae = make_sae()
    sae.config.metrics = evaluate_sae(sae, language_model(), batches(), disable_tqdm=True)
    sae.save_pretrained(tmp_path)
    assert changed_settings(SAE.from_pretrained(tmp_path).config) == []
    loaded = SAE.from_pretrained(tmp_path, **settings)
    assert sorted(changed_settings(loaded.config)) == changed and weights_sha256(loaded) == weights_sha256(sae)
    figures = evaluate_sae(loaded, language_model(), batches(), disable_tqdm=True)
    assert (figures["explained_variance"] != sae.config.metrics["explained_variance"]) == bool(changed)
    loaded.config.metrics = figures
    assert changed_settings(loaded.config) == []


def test_records_of_earlier_versions_and_of_other_kinds_tell_of_no_change():
    config = make_sae().config
    for protocol in ({}, {"settings": None}, {"settings": [1]}, {"settings": {"unknown": 3}}, None):
        config.metrics = json.loads(json.dumps({"l0": 4.0, "protocol": protocol}))
        assert changed_settings(config) == []
