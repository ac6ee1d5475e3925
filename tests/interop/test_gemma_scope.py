"""Gemma Scope's transcoders: skip connections are read, and positions that instruct models were not trained on."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfsae import SAE
from tests.interop.foreign import FOREIGN, LAYER, D, jump, matrices, random, thresholds, write_json, write_tensors

X = 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(3)) + 0.5


def test_a_skip_connection_is_read(tmp_path: Path):
    w = {**matrices(), "threshold": thresholds(), "affine_skip_connection": random(D, D, seed=9)}
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / f"layer_{LAYER}" / "width_16k" / "average_l0_8"
    write_tensors(folder / "params.npz", w)
    sae = SAE.from_pretrained(folder)
    features = jump(X @ w["W_enc"] + w["b_enc"], w["threshold"])
    written = features @ w["W_dec"] + w["b_dec"] + X @ w["affine_skip_connection"]
    torch.testing.assert_close(sae(X).reconstruction, written, rtol=0, atol=1e-5)
    assert sae.config.skip and sae.config.is_transcoder


def test_a_skip_connection_in_a_folder_that_names_no_place_asks_where_it_writes(tmp_path: Path):
    w = {**matrices(), "threshold": thresholds(), "affine_skip_connection": random(D, D, seed=9)}
    write_tensors(tmp_path / "params.npz", w)
    with pytest.raises(ValueError, match="is a transcoder and does not say where it writes"):
        SAE.from_pretrained(tmp_path)
    assert SAE.from_pretrained(tmp_path, target_hook_point="mlp_out.2").config.is_transcoder


@pytest.mark.parametrize("model, left_out", [("gemma-v3-1b-it", [0, 1, 2, 3]), ("gemma-v3-1b-pt", [])])
def test_transcoders_of_instruct_models_leave_out_the_first_four_positions(model: str, left_out: list, tmp_path: Path):
    foreign = FOREIGN["gemma_scope_2"](tmp_path)
    config = json.loads((foreign.path / "config.json").read_text())
    write_json(foreign.path / "config.json", {**config, "model_name": model})
    assert SAE.from_pretrained(foreign.path).config.exclude_positions == left_out


def test_an_affine_connection_without_a_target_asks_for_it(tmp_path: Path):
    foreign = FOREIGN["gemma_scope_2"](tmp_path)
    config = json.loads((foreign.path / "config.json").read_text())
    del config["hf_hook_point_out"]
    write_json(foreign.path / "config.json", config)
    assert "affine_skip_connection" in load_file(foreign.path / "params.safetensors")
    with pytest.raises(ValueError, match="pass target_hook_point="):
        SAE.from_pretrained(foreign.path)
