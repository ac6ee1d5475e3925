"""Files in Gemma Scope 2's form compute the same by its formula written out, and come back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hfsae import SAE, export_sae
from tests.architectures.test_cross_layer_transcoder import D_IN, LAYERS
from tests.architectures.test_cross_layer_transcoder import make as make_layers
from tests.interop.foreign import D
from tests.interop.test_gemma_scope_2_layers import CROSSCODER
from tests.interop.test_gemma_scope_2_layers import X as X_OF_LAYERS
from tests.interop.test_gemma_scope_2_layers import write as write_theirs
from tests.interop.test_writers import MLP, make, same

X = 2 * torch.randn(30, D, generator=torch.Generator().manual_seed(3)) + 0.5
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def by_formula(layers: list[dict[str, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    """Features (tokens, features of all) and reconstructions (tokens, places, d) from (tokens, places, d)."""
    features, made = [], 0
    for layer, w in enumerate(layers):
        pre = x[:, layer] @ w["w_enc"] + w["b_enc"]
        own = (pre > w["threshold"]) * pre.relu()
        features.append(own)
        made = made + torch.einsum("tn,nld->tld", own, w["w_dec"].view(len(w["w_dec"]), len(layers), -1))
        written = torch.zeros_like(made)
        written[:, layer] = w["b_dec"]
        if "affine_skip_connection" in w:
            written[:, layer] += x[:, layer] @ w["affine_skip_connection"]
        made = made + written
    return torch.cat(features, 1), made


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "batch_topk", "matryoshka"])
@pytest.mark.parametrize("options", [{}, {"rescale_by_decoder_norm": True}, MLP, {**MLP, "skip": True}], ids=str)
def test_one_place(architecture: str, options: dict, tmp_path: Path):
    sae = make(architecture, scale=1.5, **options)
    folder = export_sae(sae, tmp_path / "out", "gemma-scope-2")
    features, made = by_formula([load_file(folder / "params.safetensors")], X[:, None])
    torch.testing.assert_close(features, sae.encode(X), **CLOSE)
    torch.testing.assert_close(made[:, 0], sae(X).reconstruction, **CLOSE)
    again = SAE.from_pretrained(folder)
    same(again, sae, **CLOSE)
    for fact in ("base_model", "hook_point", "target_hook_point"):
        assert getattr(again.config, fact) == getattr(sae.config, fact), fact


@pytest.mark.parametrize("rule, form", [("batch_topk", "tied"), ("jumprelu", "free"), ("jumprelu", "skip")])
def test_a_cross_layer_transcoder(rule: str, form: str, tmp_path: Path):
    places = {
        "hook_point": "+".join(f"transformer.h.{layer}.mlp.input" for layer in range(LAYERS)),
        "target_hook_point": "+".join(f"transformer.h.{layer}.mlp.output" for layer in range(LAYERS)),
    }
    sae = make_layers(rule, form, torch.float32, base_model="openai-community/gpt2", **places)
    folder = export_sae(sae, tmp_path / "out", "gemma-scope-2")
    layers = [load_file(folder / f"params_layer_{layer}.safetensors") for layer in range(LAYERS)]
    assert json.loads((folder / "config.json").read_text())["model_name"] == "openai-community/gpt2"
    x = 2 * torch.randn(30, LAYERS * D_IN, generator=torch.Generator().manual_seed(3))
    features, made = by_formula(layers, x.unflatten(1, (LAYERS, D_IN)))
    assert 0.02 < (features != 0).float().mean() < 0.98
    torch.testing.assert_close(features, sae.encode(x), **CLOSE)
    torch.testing.assert_close(made.flatten(1), sae(x).reconstruction, **CLOSE)
    again = SAE.from_pretrained(folder)
    torch.testing.assert_close(again(x).reconstruction, sae(x).reconstruction, **CLOSE)
    assert again.config.base_model == sae.config.base_model
    assert (again.config.source_places, again.config.target_places) == (
        sae.config.source_places,
        sae.config.target_places,
    )


def test_a_weakly_causal_crosscoder_goes_back_as_it_came(tmp_path: Path):
    before = write_theirs(tmp_path / CROSSCODER, {"architecture": "jump_relu"}, causal=False)
    sae = SAE.from_pretrained(tmp_path / CROSSCODER)
    folder = export_sae(sae, tmp_path / "out", "gemma-scope-2")
    layers = [load_file(folder / f"params_layer_{layer}.safetensors") for layer in range(X_OF_LAYERS.shape[1])]
    for layer, w in enumerate(layers):
        for name, tensor in w.items():
            expected = before[name][layer].clamp(min=0) if name == "threshold" else before[name][layer]
            torch.testing.assert_close(tensor, expected, rtol=0, atol=0, msg=f"{name} of {layer}")
    again = SAE.from_pretrained(folder)  # the config lists the places, so the folder's name need not
    assert again.config.source_names == ["5", "9", "12"] and again.config.hook_point == sae.config.hook_point
    assert again.config.base_model == "google/gemma-3-270m"
    x = X_OF_LAYERS.flatten(1)
    assert torch.equal(again(x).reconstruction, sae(x).reconstruction)


SOURCES = {
    "source_names": ["early", "late"],
    "source_widths": [3, 3],
    "hook_point": "gpt_neox.layers.1.output+gpt_neox.layers.4.output",
}


@pytest.mark.parametrize(
    "sae, reason",
    [
        (lambda: make("topk"), "thresholds: train one of standard, jumprelu, batch_topk, matryoshka."),
        (lambda: make("gated"), "its features have thresholds"),
        (lambda: make_layers("topk"), "thresholds: train one of .*, cross_layer_transcoder."),
        (lambda: make("jumprelu", input_transform="layer_norm"), "it has no layer_norm"),
        (lambda: make("jumprelu", base_model=None), "names a model and a place: set base_model and hook_point"),
        (lambda: make("crosscoder", **{**SOURCES, "source_widths": [2, 4]}), "one width"),
        (lambda: make("crosscoder", **{**SOURCES, "hook_point": "gpt_neox.layers.1.output"}), "places of one model"),
        (lambda: make("crosscoder", **SOURCES), "24 of 24 features of this one read several"),
    ],
)
def test_what_has_no_counterpart_is_refused_and_nothing_is_written(sae, reason: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"Gemma Scope 2.*{reason}"):
        export_sae(sae(), tmp_path / "out", "gemma-scope-2")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model", ["openai-community/gpt2", "somebody/gemma-3-1b-tuned"])
def test_the_name_of_another_language_model_stays(model: str, tmp_path: Path):
    sae = make("jumprelu", base_model=model, hook_point="model.layers.2.output")
    again = SAE.from_pretrained(export_sae(sae, tmp_path, "gemma-scope-2"))
    assert again.config.base_model == model and again.config.context_length is None
