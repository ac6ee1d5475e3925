"""circuit-tracer's layer files: what they are is told by their tensors."""

from pathlib import Path

import pytest
import torch
import yaml

from hfsae import SAE
from hfsae.saved.convert import convert
from tests.interop.foreign import LAYER, D, jump, matrices, random, thresholds, write_tensors

X = 2 * torch.randn(64, D, generator=torch.Generator().manual_seed(3)) + 0.5
CONFIG = {
    "model_name": "Qwen/Qwen3-4B",
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "hook_mlp_out",
    "scan": "mine",
}


def transcoders(folder: Path, threshold: bool, skip: bool, config: dict | None = None) -> dict[str, torch.Tensor]:
    w = matrices()
    w["W_enc"] = w["W_enc"].T.contiguous()
    if threshold:
        w["activation_function.threshold"] = thresholds()
    if skip:
        w["W_skip"] = random(D, D, seed=9)
    for layer in (LAYER, LAYER + 1):
        write_tensors(folder / f"layer_{layer}.safetensors", w)
    name = "config.yaml" if config else "wandb-config.yaml"
    (folder / name).write_text(yaml.safe_dump(config or {"d_model": {"value": D}}))
    return w


@pytest.mark.parametrize("config", [CONFIG, None], ids=["circuit-tracer", "Qwen3"])
@pytest.mark.parametrize("threshold", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_thresholds_and_skip_connections_are_read(threshold: bool, skip: bool, config: dict | None, tmp_path: Path):
    w = transcoders(tmp_path, threshold, skip, config)
    h = X @ w["W_enc"].T + w["b_enc"]
    features = jump(h, w["activation_function.threshold"]) if threshold else h.relu()
    written = features @ w["W_dec"] + w["b_dec"] + (X @ w["W_skip"].T if skip else 0)
    sae = SAE.from_pretrained(tmp_path, subfolder=f"layer_{LAYER}.safetensors")
    torch.testing.assert_close(sae.encode(X), features, rtol=0, atol=1e-5)
    torch.testing.assert_close(sae(X).reconstruction, written, rtol=0, atol=1e-5)
    assert type(sae).__name__ == ("JumpReLUSAE" if threshold else "StandardSAE") and sae.config.skip == skip
    assert sae.config.is_transcoder


def test_a_topk_is_told_by_the_config_alone(tmp_path: Path):
    w = transcoders(tmp_path, False, True, {**CONFIG, "activation": "topk", "k": 3})
    h = X @ w["W_enc"].T + w["b_enc"]
    kept = h.topk(3, -1)
    features = torch.zeros_like(h).scatter(-1, kept.indices, kept.values)
    assert (kept.values > 0).all()  # there, a negative one among the k largest passes
    sae = SAE.from_pretrained(tmp_path, subfolder=f"layer_{LAYER}.safetensors")
    torch.testing.assert_close(sae.encode(X), features, rtol=0, atol=1e-5)
    written = features @ w["W_dec"] + w["b_dec"] + X @ w["W_skip"].T
    torch.testing.assert_close(sae(X).reconstruction, written, rtol=0, atol=1e-5)
    assert type(sae).__name__ == "TopKSAE" and sae.config.k == 3


def test_a_topk_without_k_and_other_activations_are_refused(tmp_path: Path):
    known = tmp_path / "crv-8b-instruct-transcoders"
    for folder in (known, tmp_path / "other"):
        transcoders(folder, False, False, {**CONFIG, "activation": "topk"})
    with pytest.raises(ValueError, match="k must be"):  # 128, as circuit-tracer has it: more than these features
        SAE.from_pretrained(known, subfolder=f"layer_{LAYER}.safetensors")
    with pytest.raises(ValueError, match="lacks k"):
        SAE.from_pretrained(tmp_path / "other", subfolder=f"layer_{LAYER}.safetensors")
    transcoders(tmp_path / "other", True, False, {**CONFIG, "activation": "topk", "k": 3})
    with pytest.raises(ValueError, match="has thresholds, and a config that says activation = 'topk'"):
        SAE.from_pretrained(tmp_path / "other", subfolder=f"layer_{LAYER}.safetensors")
    transcoders(tmp_path / "other", False, False, {**CONFIG, "activation": "gelu"})
    with pytest.raises(ValueError, match="activation = 'gelu', which has no counterpart here"):
        SAE.from_pretrained(tmp_path / "other", subfolder=f"layer_{LAYER}.safetensors")


def test_its_config_says_the_places_and_the_model(tmp_path: Path):
    transcoders(tmp_path, True, True, {**CONFIG, "feature_output_hook": "mlp.hook_out"})
    config = SAE.from_pretrained(tmp_path, subfolder=f"layer_{LAYER}.safetensors").config
    assert config.base_model == "Qwen/Qwen3-4B" and config.training["converted_from"] == "circuit-tracer"
    assert config.hook_point == f"model.layers.{LAYER}.mlp.input"
    assert config.target_hook_point == f"model.layers.{LAYER}.mlp.output"
    assert [folder.name for folder in convert(tmp_path, tmp_path / "out")] == ["layer_2", "layer_3"]


def test_a_tensor_of_another_kind_of_transcoder_is_refused(tmp_path: Path):
    w = transcoders(tmp_path, False, False, CONFIG)
    path = tmp_path / f"layer_{LAYER}.safetensors"
    write_tensors(path, {**w, "k": torch.tensor(3)})
    with pytest.raises(ValueError, match="hold k besides"):
        SAE.from_pretrained(path)
    write_tensors(path, {**w, "activation_function.threshold": -thresholds()})
    with pytest.raises(ValueError, match="negative thresholds"):
        SAE.from_pretrained(path)


def test_a_broken_config_is_named(tmp_path: Path):
    transcoders(tmp_path, False, False, CONFIG)
    for text, message in (("a: [", "config.yaml of .* is not valid YAML"), ("model_kind: other", "no sparse autoenc")):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            SAE.from_pretrained(tmp_path, subfolder=f"layer_{LAYER}.safetensors")
    (tmp_path / "config.yaml").write_text("model_kind: transcoder_set")
    with pytest.raises(ValueError, match="config.yaml of .* lacks feature_input_hook, feature_output_hook"):
        SAE.from_pretrained(tmp_path, subfolder=f"layer_{LAYER}.safetensors")


SCOPE = "hf://google/gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76/params.npz"


@pytest.mark.parametrize("kind", ["transcoder_set", "cross_layer_transcoder"])
@pytest.mark.parametrize(
    "pointer, call",
    [
        (
            SCOPE,
            "'google/gemma-scope-2b-pt-transcoders', subfolder='layer_0/width_16k/average_l0_76/params.npz'",
        ),
        ("hf://me/mine/layer_0.safetensors?revision=v2", "'me/mine', subfolder='layer_0.safetensors', revision='v2'"),
        ("/data/mine/layer_0.safetensors", "'/data/mine/layer_0.safetensors'"),
    ],
)
def test_a_list_of_files_elsewhere_is_refused_with_what_loads_them(kind: str, pointer: str, call: str, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({**CONFIG, "model_kind": kind, "transcoders": [pointer, pointer]})
    )
    with pytest.raises(ValueError, match="names files that lie elsewhere") as refused:
        SAE.from_pretrained(tmp_path)
    assert "transcoders: 2 of them" in str(refused.value) and f"SAE.from_pretrained({call})" in str(refused.value)


def test_the_call_that_it_names_loads_the_file(tmp_path: Path):
    w = transcoders(tmp_path / "there", True, False, CONFIG)
    pointer = str(tmp_path / "there" / f"layer_{LAYER}.safetensors")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "transcoders": [pointer]}))
    with pytest.raises(ValueError, match="the first is SAE.from_pretrained") as refused:
        SAE.from_pretrained(tmp_path)
    named = str(refused.value).split("from_pretrained('")[1].split("')")[0]
    torch.testing.assert_close(SAE.from_pretrained(named).W_dec.detach(), w["W_dec"])


def test_what_is_no_list_of_files_is_named(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "transcoders": 3}))
    with pytest.raises(ValueError, match="transcoders = 3, expected a list of files"):
        SAE.from_pretrained(tmp_path)
