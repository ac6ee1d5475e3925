"""Pages of features for circuit-tracer: fields by hand, and what `hfsae convert` leaves beside a set."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from hfsae import SAE, TopKCrossLayerTranscoderSAEConfig, collect_features
from hfsae.analysis import export_circuit_tracer
from hfsae.architectures import config_class_of
from hfsae.cli import main
from tests.data.tiny import language_model, pythia_like

TEXTS = ["w1 w2 w3 w4 w5 w6 w7", "w3 w1 w4 w1 w5 w9 w2 w6", "w2 w7 w1 w8 w2 w8"] * 4
# `circuit_tracer/frontend/feature_models.py` of circuit-tracer 0.5.0.
FIELDS = {
    *("transcoder_id", "index", "examples_quantiles", "top_logits", "bottom_logits", "act_min", "act_max"),
    *("quantile_values", "histogram", "activation_frequency"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A set of two transcoders whose features were collected, and the language model beside it."""
    root = tmp_path_factory.mktemp("run")
    model, tokenizer = language_model(), pythia_like()
    model.save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")
    width = model.config.n_embd
    for layer in range(2):
        torch.manual_seed(layer)
        places = {"hook_point": f"transformer.h.{layer}.mlp.input", "base_model": str(root / "lm")}
        sae = SAE.from_config(
            config_class_of("standard")(
                d_in=width,
                n_features=20,
                subtract_b_dec=False,
                target_hook_point=f"transformer.h.{layer}.mlp.output",
                **places,
            )
        ).eval()
        sae.save_pretrained(root / "set" / f"mlp_in.{layer}")
        collect_features(sae, model, tokenizer, TEXTS, disable_tqdm=True).save(root / "set" / f"mlp_in.{layer}")
    return root


def number(layer: int, feature: int) -> int:
    """Cantor's pairing, counted out along its diagonals."""
    return sum(range(layer + feature + 1)) + feature


def test_convert_writes_pages_of_collected_features_beside_a_set(run: Path, tmp_path: Path):
    assert main(["convert", str(run / "set"), str(tmp_path / "out"), "--to", "circuit-tracer"]) == 0
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["scan"] == "./data/features"
    names = {path.name for path in (tmp_path / "out" / "features").iterdir()}
    assert names == {f"{number(layer, feature)}.json" for layer in range(2) for feature in range(20)}
    model, tokenizer = language_model(), pythia_like()
    sae = SAE.from_pretrained(run / "set", subfolder="mlp_in.1")
    with torch.no_grad(), sae.attach(model) as attached:
        ids = tokenizer(TEXTS[1], return_tensors="pt").input_ids
        model(ids)
    values = attached.features.to_dense()[0]
    page = json.loads((tmp_path / "out" / "features" / f"{number(1, 7)}.json").read_text())
    assert page.keys() == FIELDS and page["index"] == 7 and page["transcoder_id"] == "1"
    top, *bands = page["examples_quantiles"]
    assert top["quantile_name"] == "Top activations" and len(bands) > 0
    peaks = []
    for example in (example for band in page["examples_quantiles"] for example in band["examples"]):
        assert len(example["tokens"]) == len(example["tokens_acts_list"])
        assert example["is_repeated_datapoint"] is False
        peaks.append(example["tokens_acts_list"][example["train_token_ind"]])
    assert max(peaks) == pytest.approx(page["act_max"], abs=1e-3) and page["act_min"] == 0
    assert page["act_max"] >= float(values[1:, 7].max()) - 1e-4
    assert page["quantile_values"] == sorted(page["quantile_values"]) and len(page["quantile_values"]) == 6
    assert 0 < page["activation_frequency"] <= 1 and all(isinstance(token, str) for token in page["top_logits"])


def test_features_of_other_weights_get_no_pages(run: Path, tmp_path: Path):
    sae = SAE.from_pretrained(run / "set", subfolder="mlp_in.0")
    for layer in range(2):
        changed = SAE.from_pretrained(run / "set", subfolder=f"mlp_in.{layer}")
        with torch.no_grad():
            changed.encoder.bias.add_(0.1)
        changed.save_pretrained(tmp_path / "set" / f"mlp_in.{layer}")
        for file in ("features.safetensors", "features.json"):
            there = run / "set" / f"mlp_in.{layer}" / file
            (tmp_path / "set" / f"mlp_in.{layer}" / file).write_bytes(there.read_bytes())
    assert main(["convert", str(tmp_path / "set"), str(tmp_path / "out"), "--to", "circuit-tracer"]) == 0
    assert not (tmp_path / "out" / "features").exists() and sae.config.n_features == 20
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["scan"] == "out"


def test_a_cross_layer_transcoder_has_pages_by_layer(run: Path, tmp_path: Path):
    model, tokenizer = language_model(), pythia_like()
    names, width = ["mlp_in.0", "mlp_in.1"], model.config.n_embd
    config = TopKCrossLayerTranscoderSAEConfig(
        source_names=names,
        source_widths=[width, width],
        n_features=40,
        k=3,
        hook_point="+".join(names),
        target_hook_point="mlp_out.0+mlp_out.1",
    )
    collected = collect_features(SAE.from_config(config).eval(), model, tokenizer, TEXTS, disable_tqdm=True)
    export_circuit_tracer(collected, tokenizer, tmp_path / "pages", features_per_layer=20)
    page = json.loads((tmp_path / "pages" / f"{number(1, 3)}.json").read_text())
    assert page["transcoder_id"] == "1" and page["index"] == 3 and page["act_max"] == collected.of(23).maximum
    with pytest.raises(ValueError, match="features_per_layer is of the one collection"):
        export_circuit_tracer(collected, tokenizer, tmp_path / "pages")
