"""Measuring an SAE from its saved folder alone."""

import json

import pytest
import torch

from hfsae import SAE
from hfsae.evaluation.saved import evaluate_saved


def test_measuring_again_gives_the_recorded_figures(trained_folder):
    recorded = json.loads((trained_folder / "metrics.json").read_text())
    measured = evaluate_saved(trained_folder, write=False)
    for name in ("l0", "explained_variance", "ce_clean", "ce_spliced", "ce_mean", "loss_recovered"):
        assert measured[name] == pytest.approx(recorded[name], abs=1e-4), name
    assert measured["n_tokens"] == recorded["n_tokens"]


def test_changed_weights_are_measured_as_they_are_and_written_down(trained_folder, tmp_path):
    sae = SAE.from_pretrained(trained_folder)
    before = sae.config.metrics["explained_variance"]
    with torch.no_grad():
        sae.b_dec.add_(5.0)
    sae.save_pretrained(tmp_path)
    measured = evaluate_saved(tmp_path)
    assert measured["explained_variance"] < before
    assert SAE.from_pretrained(tmp_path).config.metrics["explained_variance"] == measured["explained_variance"]
    assert json.loads((tmp_path / "metrics.json").read_text())["l0"] == measured["l0"]


def test_an_sae_without_recorded_text_needs_one_to_be_named(trained_folder, tmp_path):
    sae = SAE.from_pretrained(trained_folder)
    sae.config.metrics = None
    sae.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="name one"):
        evaluate_saved(tmp_path)
