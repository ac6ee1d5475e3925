"""Sets of transcoders for circuit-tracer: what is written computes the same by its own formula."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from hfsae import SAE
from hfsae.cli import main
from hfsae.interop.circuit_tracer_writer import write_transcoder_set
from tests.interop.foreign import D
from tests.interop.test_writers import make

X = 2 * torch.randn(30, D, generator=torch.Generator().manual_seed(3)) + 0.5
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def transcoder(layer: int, architecture: str = "jumprelu", **options: Any) -> SAE:
    places = {
        "hook_point": f"gpt_neox.layers.{layer}.mlp.input",
        "target_hook_point": f"gpt_neox.layers.{layer}.mlp.output",
    }
    return make(architecture, scale=1.5, **{**places, **options})


def theirs(file: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and reconstructions as circuit-tracer's `SingleLayerTranscoder` has them."""
    w = load_file(file)
    h = x @ w["W_enc"].T + w["b_enc"]
    threshold = w.get("activation_function.threshold")
    features = h.relu() if threshold is None else h * (h > threshold)
    return features, features @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if "W_skip" in w else 0)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "batch_topk", "matryoshka"])
@pytest.mark.parametrize("options", [{}, {"skip": True}, {"subtract_b_dec": False}], ids=str)
def test_a_set_computes_the_same_by_their_formula_and_comes_back(architecture: str, options: dict, tmp_path: Path):
    saes = [transcoder(layer, architecture, **options) for layer in (1, 0)]
    folder = write_transcoder_set(saes, tmp_path / "set")
    for sae, layer in zip(saes, (1, 0), strict=True):
        features, reconstructions = theirs(folder / f"layer_{layer}.safetensors", X)
        torch.testing.assert_close(features, sae.encode(X), **CLOSE)
        torch.testing.assert_close(reconstructions, sae(X).reconstruction, **CLOSE)
        again = SAE.from_pretrained(folder, subfolder=f"layer_{layer}.safetensors")
        torch.testing.assert_close(again(X).reconstruction, sae(X).reconstruction, **CLOSE)
        assert again.config.hook_point == sae.config.hook_point
        assert again.config.target_hook_point == sae.config.target_hook_point
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {
        "model_name": "EleutherAI/pythia-70m",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": "set",
    }


def test_the_command_makes_one_set_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for layer in (0, 1):
        transcoder(layer).save_pretrained(tmp_path / "run" / f"mlp_in.{layer}")
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "set"), "--to", "circuit-tracer"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "set")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [
        "config.yaml",
        "layer_0.safetensors",
        "layer_1.safetensors",
    ]


@pytest.mark.parametrize(
    "saes, message",
    [
        ([], "every layer from 0 on, got layers"),
        ([{"layer": 0}, {"layer": 2}], r"every layer from 0 on, got layers \[0, 2\]"),
        ([{"layer": 0}, {"layer": 0}], "there are two of layer 0"),
        ([{"layer": 0, "architecture": "topk"}], "passes over `activation: topk` .* Train batch_topk or jumprelu"),
        ([{"layer": 0, "architecture": "gated"}], "hold transcoders of ReLU or thresholds"),
        ([{"layer": 0, "target_hook_point": None}], "hold transcoders of ReLU or thresholds"),
        ([{"layer": 0, "target_hook_point": "gpt_neox.layers.1.mlp.output"}], "stay within one layer"),
        ([{"layer": 0}, {"layer": 1, "skip": True}], "one skip in all layers"),
        ([{"layer": 0}, {"layer": 1, "n_features": 30}], "one n_features in all layers"),
        ([{"layer": 0}, {"layer": 1, "hook_point": "gpt_neox.layers.1.input"}], "share their places"),
    ],
)
def test_what_a_set_cannot_hold_is_refused_and_nothing_is_written(saes: list[dict], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        write_transcoder_set([transcoder(**sae) for sae in saes], tmp_path / "set")
    assert not (tmp_path / "set").exists()
