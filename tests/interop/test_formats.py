"""Every foreign format against its source's own formula, written out in `tests/interop/foreign.py`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hfsae import SAE, TopKSAE
from hfsae.architectures import architecture_name
from hfsae.loading import load_config
from tests.interop.foreign import FOREIGN, D, Foreign, K, saelens, sparsify_topk, write_json, write_tensors

X = 2 * torch.randn(40, D, generator=torch.Generator().manual_seed(3)) + 0.5


def load(foreign: Foreign, **options) -> SAE:
    return SAE.from_pretrained(foreign.path, **{**foreign.options, **options})


@pytest.mark.parametrize("name", FOREIGN)
def test_features_and_reconstructions_are_those_of_the_source(name: str, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path)
    sae = load(foreign)
    features = foreign.features(X)
    assert 0 < (features != 0).float().mean() < 1
    torch.testing.assert_close(sae.encode(X), features, rtol=0, atol=1e-5)
    torch.testing.assert_close(sae(X).reconstruction, foreign.decode(features, X), rtol=0, atol=1e-5)
    torch.testing.assert_close(sae.decode(sae.encode(X), X), foreign.decode(features, X), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FOREIGN)
def test_the_config_says_what_the_source_said(name: str, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path)
    config = load(foreign).config
    assert architecture_name(config) == foreign.architecture
    assert {key: getattr(config, key) for key in foreign.config} == foreign.config
    assert config.training["converted_from"]


def test_a_config_alone_is_read_with_the_weights_or_not_at_all(tmp_path: Path):
    foreign = FOREIGN["auto_encoder_topk"](tmp_path)
    config = load_config(foreign.path, fetch_weights=True, allow_pickle=True)
    assert config.to_dict() == load(foreign).config.to_dict()
    with pytest.raises(ValueError, match="model_type"):
        load_config(foreign.path)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_was_read_is_saved_and_loaded_as_our_own(name: str, tmp_path: Path):
    sae = load(FOREIGN[name](tmp_path / "theirs"))
    sae.save_pretrained(tmp_path / "ours")
    again = SAE.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(again.state_dict(), sae.state_dict(), rtol=0, atol=0)
    assert torch.equal(again.encode(X), sae.encode(X))


@pytest.mark.parametrize("name", FOREIGN)
def test_thresholds_and_scales_are_float32_whatever_the_weights_are(name: str, tmp_path: Path):
    sae = load(FOREIGN[name](tmp_path), dtype="bfloat16")
    assert sae.W_dec.dtype == torch.bfloat16 and not sae.training
    kept = [tensor for tensor in (sae.input_scale, getattr(sae, "threshold", None)) if tensor is not None]
    assert {tensor.dtype for tensor in kept} == {torch.float32}


# -- what is given ----------------------------------------------------------------------------------------------------
def test_config_fields_can_be_given(tmp_path: Path):
    foreign = sparsify_topk(tmp_path)
    sae = load(foreign, k=1, hook_point="resid_pre.4")
    assert (sae.config.k, sae.config.hook_point) == (1, "resid_pre.4")
    assert (sae.encode(X) != 0).sum(1).max() == 1
    with pytest.raises(TypeError, match="no argument 'hook_pont'. Did you mean 'hook_point'"):
        load(foreign, hook_pont="resid_pre.4")


def test_a_class_takes_only_its_own(tmp_path: Path):
    assert type(TopKSAE.from_pretrained(sparsify_topk(tmp_path / "a").path)) is TopKSAE
    with pytest.raises(ValueError, match="is of a StandardSAE: use StandardSAE or SAE, not TopKSAE"):
        TopKSAE.from_pretrained(FOREIGN["saelens_standard"](tmp_path / "b").path)


@pytest.mark.parametrize("name", ["sparsify_topk", "saelens_jumprelu"])
@pytest.mark.parametrize("device_map", ["cpu", "auto", "meta", torch.device("cpu"), {"": "cpu"}, {"": "meta"}, None])
def test_it_lies_where_transformers_puts_one_of_ours(name: str, device_map: Any, tmp_path: Path):
    foreign = FOREIGN[name](tmp_path / "theirs")
    load(foreign).save_pretrained(tmp_path / "ours")
    theirs, ours = (
        load(foreign, device_map=device_map),
        SAE.from_pretrained(tmp_path / "ours", device_map=device_map),
    )
    devices = {key: tensor.device for key, tensor in ours.state_dict().items()}
    assert {key: tensor.device for key, tensor in theirs.state_dict().items()} == devices
    if "meta" not in str(device_map):
        torch.testing.assert_close(theirs.encode(X), foreign.features(X), rtol=0, atol=1e-5)


def test_auto_spreads_by_the_memory_that_there_is(tmp_path: Path):
    sae = load(sparsify_topk(tmp_path), device_map="auto", max_memory={"cpu": "1GB"}, dtype="bfloat16")
    assert {(tensor.device.type, tensor.dtype) for tensor in (sae.W_dec, sae.encoder.weight)} == {
        ("cpu", torch.bfloat16)
    }
    assert sae.input_scale.dtype == torch.float32
    with pytest.raises(ValueError, match="device_map"):
        load(sparsify_topk(tmp_path), device_map="everywhere")


def test_a_loading_report_on_request(tmp_path: Path):
    _, info = SAE.from_pretrained(sparsify_topk(tmp_path).path, output_loading_info=True)
    assert not info


# -- what cannot be read ----------------------------------------------------------------------------------------------
def test_unknown_files_are_named_with_what_was_expected(tmp_path: Path):
    write_json(tmp_path / "settings.json", {})
    write_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=r"settings.json, weights.safetensors.* known format: expected .*SAELens, spars"
    ):
        SAE.from_pretrained(tmp_path)


def test_files_of_two_formats_in_one_folder_are_refused(tmp_path: Path):
    foreign = sparsify_topk(tmp_path)
    write_tensors(foreign.path / "params.npz", {"W_enc": torch.zeros(1)})
    with pytest.raises(ValueError, match="may be of sparsify or of Gemma Scope: keep one SAE a folder"):
        load(foreign)


def test_one_of_many_files_has_to_be_named(tmp_path: Path):
    path = FOREIGN["qwen3_transcoder"](tmp_path).path
    with pytest.raises(
        ValueError, match="2 files that may be meant: layer_2.safetensors, layer_3.safetensors. Name one"
    ):
        SAE.from_pretrained(path.parent)
    assert SAE.from_pretrained(path.parent, subfolder="layer_3.safetensors").config.hook_point.startswith(
        "model.layers.3"
    )


def test_missing_and_mis_sized_tensors_are_named(tmp_path: Path):
    foreign = FOREIGN["gemma_scope"](tmp_path)
    write_tensors(foreign.path / "params.npz", {"W_enc": torch.zeros(D, 4)})
    with pytest.raises(ValueError, match="lack b_enc, W_dec, b_dec, threshold; found W_enc"):
        load(foreign)
    sizes = {"W_enc": (D, 4), "b_enc": (4,), "W_dec": (4, D), "b_dec": (D,), "threshold": (5,)}
    write_tensors(foreign.path / "params.npz", {name: torch.zeros(*size) for name, size in sizes.items()})
    with pytest.raises(ValueError, match=r"threshold \(stored \(5,\), expected \(4,\)\)"):
        load(foreign)


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"architecture": "temporal"}, "architecture = 'temporal', which has no counterpart"),
        ({"normalize_activations": "covariance_whitening"}, "normalize_activations = 'covariance_whitening'"),
        ({"metadata": {"hook_head_index": 3}}, "single attention head"),
    ],
)
def test_what_has_no_counterpart_is_refused_with_its_name(extra: dict, message: str, tmp_path: Path):
    saelens(tmp_path, "standard", extra, {"W_enc": torch.zeros(1)})
    with pytest.raises(ValueError, match=message):
        SAE.from_pretrained(tmp_path)


def test_a_broken_config_is_named(tmp_path: Path):
    foreign = sparsify_topk(tmp_path)
    (foreign.path / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match="cfg.json of .* is not valid JSON"):
        load(foreign)


def test_a_transcoder_in_a_folder_that_names_no_module_asks_for_its_places(tmp_path: Path):
    foreign = FOREIGN["sparsify_transcoder"](tmp_path)
    moved = foreign.path.rename(foreign.path.with_name("somewhere"))
    with pytest.raises(ValueError, match="say where it reads and writes"):
        SAE.from_pretrained(moved)
    sae = SAE.from_pretrained(moved, hook_point="mlp_in.2", target_hook_point="mlp_out.2")
    assert sae.config.is_transcoder


def test_a_factor_that_was_never_saved_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    foreign = FOREIGN["saelens_standard"](tmp_path)
    config = json.loads((foreign.path / "cfg.json").read_text())
    write_json(foreign.path / "cfg.json", {**config, "normalize_activations": "expected_average_only_in"})
    assert torch.allclose(load(foreign).encode(X), foreign.features(X), atol=1e-5)
    assert "does not say by which factor" in caplog.text


def test_qwen_scope_without_its_repositorys_name_asks_for_k(tmp_path: Path):
    path = FOREIGN["qwen_scope"](tmp_path).path
    moved = path.rename(tmp_path / "layer5.sae.pt")
    with pytest.raises(ValueError, match="Pass k="):
        SAE.from_pretrained(moved, allow_pickle=True)
    assert SAE.from_pretrained(moved, allow_pickle=True, k=K).config.k == K
