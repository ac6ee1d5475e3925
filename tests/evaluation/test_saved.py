"""Measuring an SAE from its saved folder alone."""

import json
import random

import pytest
import torch

from hfsae import SAE, SAETrainer
from hfsae.evaluation.saved import evaluate_saved
from hfsae.hub import verify
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import arguments


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
    sae.config.metrics = sae.config.training = None
    sae.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="name one"):
        evaluate_saved(tmp_path)


@pytest.fixture
def folder_of_two_files(tmp_path):
    """A language model, and a folder of texts that differ so much that figures on them do."""
    for part, words in (("a", 4), ("b", 40)):
        draw = random.Random(part)
        rows = [" ".join(f"w{draw.randrange(words)}" for _ in range(30)) for _ in range(300)]
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{part}.jsonl").write_text("".join(json.dumps({"body": row}) + "\n" for row in rows))
    language_model().save_pretrained(tmp_path / "lm")
    pythia_like().save_pretrained(tmp_path / "lm")
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        {"dataset_data_files": "a.jsonl"},
        {"dataset_data_files": "a.jsonl", "streaming": True, "evaluation_share": 0.1, "calibration_share": 0.1},
        {"mix_documents": False, "text_column": "body"},
    ],
)
def test_what_is_measured_again_is_the_text_that_was_recorded(folder_of_two_files, options):
    place = folder_of_two_files
    named = {"model_name_or_path": str(place / "lm"), "dataset_name": str(place / "text"), "eval_tokens": 200}
    args = arguments(place / "sae", **named, **options)
    recorded = SAETrainer(args=args).train().metrics[""]
    measured = evaluate_saved(place / "sae", write=False)
    for name in ("n_tokens", "l0", "explained_variance", "ce_clean", "ce_mean"):
        assert measured[name] == pytest.approx(recorded[name], rel=1e-4), name
    assert measured["protocol"] == recorded["protocol"]
    assert verify(place / "sae").same_text


def test_another_text_is_read_by_its_own_column_and_its_only_split(folder_of_two_files):
    place = folder_of_two_files
    named = {"model_name_or_path": str(place / "lm"), "dataset_name": str(place / "text"), "text_column": "body"}
    SAETrainer(args=arguments(place / "sae", **named)).train()
    (place / "other.jsonl").write_text("".join(json.dumps({"said": "w1 w2 w3 w4 w5"}) + "\n" for _ in range(50)))
    measured = evaluate_saved(place / "sae", dataset=str(place / "other.jsonl"), write=False, max_tokens=100)
    assert measured["protocol"]["split"] == "train" and measured["protocol"].get("text_column") is None
