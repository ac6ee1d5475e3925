"""circuit-tracer's cross-layer transcoders: what its files say, and what is written for it, by its formula by hand."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from hfsae import SAE
from hfsae.saved.convert import convert
from tests.architectures.test_cross_layer_transcoder import make
from tests.interop.foreign import random, write_tensors

LAYERS, N, D = 3, 10, 4
CONFIG = {
    "model_name": "Qwen/Qwen3-4B",
    "model_kind": "cross_layer_transcoder",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "mlp.hook_out",
    "scan": "mine",
}
X = torch.randn(LAYERS, 20, D, generator=torch.Generator().manual_seed(3))


def layers(folder: Path, threshold: bool, config: dict | None = None) -> list[dict[str, Tensor]]:
    made = []
    for layer in range(LAYERS):
        w = {
            "W_enc": random(N, D, seed=layer),
            "b_enc": random(N, seed=10 + layer),
            "b_dec": random(D, seed=20 + layer),
        }
        if threshold:
            w["threshold"] = random(N, seed=30 + layer).abs()
        write_tensors(folder / f"W_enc_{layer}.safetensors", {f"{name}_{layer}": t for name, t in w.items()})
        w["W_dec"] = random(N, LAYERS - layer, D, seed=40 + layer)
        write_tensors(folder / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": w["W_dec"]})
        made.append(w)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | (config or {})))
    return made


def by_formula(w: list[dict[str, Tensor]], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Features and reconstructions of each layer from what each reads, (layers, tokens, d)."""
    features = []
    for layer, own in enumerate(w):
        h = x[layer] @ own["W_enc"].T + own["b_enc"]
        features.append(h * (h > own.get("threshold", torch.zeros(()))))
    made = []
    for target, own in enumerate(w):
        sums = [features[source] @ w[source]["W_dec"][:, target - source] for source in range(target + 1)]
        made.append(sum(sums) + own["b_dec"])
    return features, made


@pytest.mark.parametrize("threshold", [True, False])
def test_what_is_read_computes_what_the_files_say(threshold: bool, tmp_path: Path):
    features, made = by_formula(layers(tmp_path, threshold), X)
    sae = SAE.from_pretrained(tmp_path)
    joined = torch.cat(list(X), 1)
    torch.testing.assert_close(sae.encode(joined), torch.cat(features, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(sae(joined).reconstruction, torch.cat(made, 1), rtol=0, atol=1e-5)
    assert type(sae).__name__ == "JumpReLUCrossLayerTranscoderSAE" and sae.config.base_model == "Qwen/Qwen3-4B"
    assert sae.config.source_places == [f"model.layers.{layer}.mlp.input" for layer in range(LAYERS)]
    assert sae.config.target_places == [f"model.layers.{layer}.mlp.output" for layer in range(LAYERS)]
    assert sae.config.training["converted_from"] == "circuit-tracer"
    (folder,) = convert(tmp_path, tmp_path / "out")
    assert torch.equal(SAE.from_pretrained(folder).encode(joined), sae.encode(joined))


@pytest.mark.parametrize("rule, form", [("batch_topk", "free"), ("jumprelu", "free"), ("jumprelu", "tied")])
def test_what_is_written_computes_what_the_sae_does(rule: str, form: str, tmp_path: Path):
    sae = make(rule, form, dtype=torch.float32, d_out=LAYERS * 4, base_model="openai-community/gpt2")
    sae.save_pretrained(tmp_path / "sae")
    assert convert(tmp_path / "sae", tmp_path / "out", "circuit-tracer") == [tmp_path / "out"]
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["model_kind"] == "cross_layer_transcoder" and config["model_name"] == "openai-community/gpt2"
    assert (config["feature_input_hook"], config["feature_output_hook"]) == ("mlp.hook_in", "hook_mlp_out")
    w = []
    for layer in range(LAYERS):
        both = [load_file(tmp_path / "out" / f"{name}_{layer}.safetensors") for name in ("W_enc", "W_dec")]
        w.append({name.rpartition("_")[0]: tensor for part in both for name, tensor in part.items()})
    features, made = by_formula(w, X)
    joined = torch.cat(list(X), 1)
    torch.testing.assert_close(sae.encode(joined), torch.cat(features, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(sae(joined).reconstruction, torch.cat(made, 1), rtol=0, atol=1e-5)
    again = SAE.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(again.encode(joined), sae.encode(joined), rtol=0, atol=1e-5)


def test_what_the_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path):
    same = {"d_out": LAYERS * 4, "base_model": "openai-community/gpt2"}
    backwards = "mlp_in.2+mlp_in.1+mlp_in.0"
    cases = {
        "have thresholds": make("topk", **same),
        "no skip connection": make("jumprelu", "skip", **same),
        "takes every layer from 0 on": make("jumprelu", **same, hook_point=backwards),
    }
    for message, sae in cases.items():
        sae.float().save_pretrained(tmp_path / "sae")
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "sae", tmp_path / "out", "circuit-tracer")
        assert not (tmp_path / "out").exists()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path):
    layers(tmp_path, True)
    write_tensors(tmp_path / "W_dec_1.safetensors", {"W_dec_1": random(N, 3, D, seed=1)})
    with pytest.raises(ValueError, match=r"decoder of layer 1 .* has shape \(10, 3, 4\), expected \(10, 2, d\)"):
        SAE.from_pretrained(tmp_path)
    (tmp_path / "W_dec_1.safetensors").unlink()
    with pytest.raises((ValueError, OSError), match="W_dec_1"):
        SAE.from_pretrained(tmp_path)
    layers(tmp_path, True)
    write_tensors(
        tmp_path / "W_enc_0.safetensors",
        {"W_enc_0": random(N, D), "b_enc_0": random(N), "b_dec_0": random(D), "threshold_0": -random(N).abs()},
    )
    with pytest.raises(ValueError, match="negative thresholds"):
        SAE.from_pretrained(tmp_path)
