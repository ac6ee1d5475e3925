"""Gemma Scope 2's crosscoders and cross-layer transcoders, by the formula that both have, written out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hfsae import SAE
from hfsae.saved.convert import convert
from tests.interop.foreign import random, write_json, write_tensors

LAYERS, N, D = 3, 7, 4
X = torch.randn(20, LAYERS, D, generator=torch.Generator().manual_seed(3))
CLT = "gemma-scope-2-1b-it/clt/width_262k_l0_medium_affine"
CROSSCODER = "gemma-scope-2-270m-pt/crosscoder/layer_5_9_12_width_65k_l0_medium"


def write(folder: Path, config: dict | None = None, *, causal: bool, skip: bool = False) -> dict[str, Tensor]:
    """Files of all layers, and their tensors stacked by layer."""
    made = []
    for layer in range(LAYERS):
        w = {
            "w_enc": random(D, N, seed=layer),
            "b_enc": random(N, seed=10 + layer),
            "threshold": random(N, seed=20 + layer),  # some are below 0
            "w_dec": random(N, LAYERS, D, seed=30 + layer),
            "b_dec": random(D, seed=40 + layer),
        }
        if causal:
            w["w_dec"][:, :layer] = 0
        if skip:
            w["affine_skip_connection"] = random(D, D, seed=50 + layer)
        write_tensors(folder / f"params_layer_{layer}.safetensors", w)
        made.append(w)
    if config is not None:
        write_json(folder / "config.json", config)
    return {name: torch.stack([w[name] for w in made]) for name in made[0]}


def by_formula(w: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features (tokens, L, n) and reconstructions (tokens, L, d)."""
    pre = torch.einsum("tld,ldn->tln", X, w["w_enc"]) + w["b_enc"]
    features = (pre > w["threshold"]) * pre.relu()
    made = torch.einsum("tln,lnmd->tmd", features, w["w_dec"]) + w["b_dec"]
    if "affine_skip_connection" in w:
        made = made + torch.einsum("tld,lde->tle", X, w["affine_skip_connection"])
    return features, made


def compare(sae: SAE, w: dict[str, Tensor]) -> None:
    features, made = by_formula(w)
    torch.testing.assert_close(sae.encode(X.flatten(1)), features.flatten(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(sae(X.flatten(1)).reconstruction, made.flatten(1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("skip", [True, False])
def test_a_cross_layer_transcoder_computes_what_its_files_say(skip: bool, tmp_path: Path):
    w = write(tmp_path / CLT, causal=True, skip=skip)
    sae = SAE.from_pretrained(tmp_path / CLT)
    compare(sae, w)
    assert type(sae).__name__ == "JumpReLUCrossLayerTranscoderSAE" and sae.config.skip == skip
    assert sae.config.base_model == "google/gemma-3-1b-it" and sae.config.exclude_positions == [0, 1, 2, 3]
    sides = {"pre": sae.config.source_places, "post": sae.config.target_places}
    for side, places in sides.items():
        assert places == [f"model.layers.{layer}.{side}_feedforward_layernorm.output" for layer in range(LAYERS)]
    (folder,) = convert(tmp_path / CLT, tmp_path / "out")
    assert torch.equal(SAE.from_pretrained(folder).encode(X.flatten(1)), sae.encode(X.flatten(1)))


def test_a_weakly_causal_crosscoder_computes_what_its_files_say(tmp_path: Path):
    w = write(tmp_path / CROSSCODER, {"architecture": "jump_relu", "l0": 60}, causal=False)
    sae = SAE.from_pretrained(tmp_path / CROSSCODER)
    compare(sae, w)
    assert type(sae).__name__ == "JumpReLUCrosscoderSAE" and sae.config.base_model == "google/gemma-3-270m"
    assert sae.config.source_names == ["5", "9", "12"] and sae.config.exclude_positions == []
    assert sae.config.source_places == [f"model.layers.{layer}.output" for layer in (5, 9, 12)]
    assert sae.config.training == {"converted_from": "Gemma Scope 2, several layers", "reported_l0": 60}


def test_a_config_that_lists_the_places_is_followed(tmp_path: Path):
    places = [f"model.layers.{layer}.mlp.output" for layer in (2, 4, 6)]
    config = {"model_name": "google/gemma-3-1b-pt", "hf_hook_point_in": places, "hf_hook_point_out": places}
    w = write(tmp_path / "layer_2_4_6", config, causal=True)
    sae = SAE.from_pretrained(tmp_path / "layer_2_4_6")
    compare(sae, w)
    assert sae.config.source_places == places
    write_json(tmp_path / "layer_2_4_6" / "config.json", {**config, "hf_hook_point_in": places[:2]})
    with pytest.raises(ValueError, match="the place of each of the 3 layers"):
        SAE.from_pretrained(tmp_path / "layer_2_4_6")
    write_json(tmp_path / "layer_2_4_6" / "config.json", dict.fromkeys(("hf_hook_point_in", "hf_hook_point_out"), "x"))
    with pytest.raises(ValueError, match="a place with a layer's number"):
        SAE.from_pretrained(tmp_path / "layer_2_4_6")


def test_what_does_not_belong_together_is_refused(tmp_path: Path):
    write(tmp_path / CLT, causal=False)
    with pytest.raises(ValueError, match="features of layer 1 .* write at earlier layers"):
        SAE.from_pretrained(tmp_path / CLT)
    write(tmp_path / CLT, causal=True)
    (tmp_path / CLT / "params_layer_2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has shape \(7, 3, 4\), expected \(7, 2, d\)"):
        SAE.from_pretrained(tmp_path / CLT)
    write(tmp_path / "several", causal=True)
    with pytest.raises(ValueError, match="does not say whether it is a crosscoder or a cross-layer transcoder"):
        SAE.from_pretrained(tmp_path / "several")
    write(tmp_path / "crosscoder", causal=True)
    with pytest.raises(ValueError, match="files of 3 layers, and its name does not say which"):
        SAE.from_pretrained(tmp_path / "crosscoder")
    write(tmp_path / CROSSCODER, causal=False, skip=True)
    with pytest.raises(ValueError, match="hold affine_skip_connection"):
        SAE.from_pretrained(tmp_path / CROSSCODER)
