"""What a command refuses before it loads a language model."""

import shutil
from pathlib import Path

import pytest

from hfsae import SAE, TopKSAEConfig
from hfsae.cli import main
from tests.data.tiny import language_model_without_weights


@pytest.fixture(scope="module")
def sae(tmp_path_factory) -> Path:
    """An SAE of a language model whose weights are gone."""
    folder = tmp_path_factory.mktemp("order")
    lm = language_model_without_weights(folder / "lm")
    place = {"hook_point": "transformer.h.1.output", "base_model": str(lm), "context_length": 16}
    SAE.from_config(TopKSAEConfig(d_in=16, n_features=48, k=4, **place)).save_pretrained(folder / "sae")
    return folder / "sae"


NOT_THERE = ["--dataset_name", "not/here.jsonl"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["eval", *NOT_THERE], "not/here.jsonl"),
        (["dashboard", *NOT_THERE], "not/here.jsonl"),
        (["space", "--output", "space.html", *NOT_THERE], "not/here.jsonl"),
        (["report", *NOT_THERE], "not/here.jsonl"),
        (["featurize", "--output", "table", *NOT_THERE], "not/here.jsonl"),
        (["score", *NOT_THERE], "not/here.jsonl"),
        (["steer", "--feature", "99", "--text", "w1"], "99"),
        (["steer-model", "--feature", "99", "--strength", "2", "--output", "steered"], "99"),
        (["steer-model", "--feature", "3", "--strength", "2", "--output", "full"], "full"),
        (["steer-model", "--feature", "3", "--strength", "2", "--output", "steered", *NOT_THERE], "not/here.jsonl"),
    ],
)
def test_a_mistake_costs_no_loading_of_a_language_model(sae, command, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sae, "full")
    name, *options = command
    assert main([name, str(sae), *options]) != 0
    said = capsys.readouterr().err
    assert says in said and "model.safetensors" not in said


def test_what_is_no_mistake_costs_it(sae, capsys):
    assert main(["steer", str(sae), "--feature", "3", "--text", "w1"]) != 0
    assert "model.safetensors" in capsys.readouterr().err
