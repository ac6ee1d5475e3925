"""clt-training's cross-layer transcoders: what its files say and what goes back, by its runner's steps by hand.

They are those of its commit 0a0fea2: `benchmarks/clt_training_peer.py` compares with its own code.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hfsae import SAE, export_sae
from hfsae.cli import main
from hfsae.saved.convert import convert, sae_subfolders
from tests.architectures.test_cross_layer_transcoder import D_IN, LAYERS
from tests.architectures.test_cross_layer_transcoder import make as make_layers
from tests.interop.foreign import random, write_json, write_tensors

N, D, K = 8, 4, 2
HOOKS = [f"layers.{layer}.mlp" for layer in range(3)]
X = 2 * torch.randn(3, 20, D, generator=torch.Generator().manual_seed(3))


def write(folder: Path, *, cross_layer: int = 3, run: dict[str, Any] | None = None, **options: Any) -> None:
    """A run's folder with random weights; `options` are of every layer's config."""
    config = {"activation": "topk", "num_latents": N, "k": K, "transcode": True, "d_in": D, "normalize_io": True}
    config |= {"coalesce_topk": "none", "skip_connection": True, "post_encoder_scale": True, **options}
    write_json(
        folder / "config.json",
        {
            "model": "EleutherAI/pythia-70m",
            "cross_layer": cross_layer,
            "hookpoints": HOOKS,
            "sae": config,
            "ctx_len": 64,
        }
        | (run or {}),
    )
    for layer, hook in enumerate(HOOKS):
        targets = min(cross_layer, 3 - layer)
        sources = min(cross_layer, layer + 1)
        seed = 100 * layer
        several = config["coalesce_topk"] == "none"
        w = {"encoder.weight": random(N, D, seed=seed), "encoder.bias": random(N, seed=seed + 1)}
        own = several and not config.get("per_source_tied")
        rows = N * (sources if config["coalesce_topk"] == "per-layer" else 1)
        w |= {f"W_decs.{i}": random(N, D, seed=seed + 10 + i) for i in range(targets)} if own else {}
        w["W_dec"] = w["W_decs.0"].clone() if own else random(rows, D, seed=seed + 10)
        w |= {f"b_decs.{i}": random(D, seed=seed + 20 + i) for i in range(targets)} if several else {}
        w["b_dec"] = w["b_decs.0"].clone() if several else random(D, seed=seed + 20)
        if config["skip_connection"]:
            w["W_skip"] = random(D, D, seed=seed + 30)
            if several:
                w |= {f"W_skips.{i}": w["W_skip"].clone() * (i == 0) for i in range(targets)}
        w |= {f"post_encs.{i}": torch.zeros(N) for i in range(targets)}
        if config["post_encoder_scale"]:
            w |= {f"post_enc_scales.{i}": 1 + 0.3 * random(N, seed=seed + 40 + i) for i in range(targets)}
        if config["normalize_io"]:
            w |= {"in_norm": 2 + random(1, seed=seed + 50).abs(), "out_norm": 2 + random(1, seed=seed + 51).abs()}
        write_tensors(folder / hook / "sae.safetensors", w)
        write_json(folder / hook / "cfg.json", {**config, "n_targets": targets, "n_sources": sources})


def by_runner(folder: Path, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Features and reconstructions of each layer, as `CrossLayerRunner` makes them, from (layers, tokens, d)."""
    run = json.loads((folder / "config.json").read_text())
    waiting: dict[int, dict[str, Any]] = {}
    features, made = [], []
    for layer, hook in enumerate(run["hookpoints"]):
        config = json.loads((folder / hook / "cfg.json").read_text())
        w = load_file(folder / hook / "sae.safetensors")
        rows = x[layer] * (x.shape[-1] ** 0.5 / w["in_norm"]) if config["normalize_io"] else x[layer]
        pre = (rows @ w["encoder.weight"].T + w["encoder.bias"]).relu()
        kept = pre.topk(config["k"], dim=1)
        z = torch.zeros_like(pre).scatter(1, kept.indices, kept.values)
        features.append(z)
        waiting[layer] = {"w": w, "x": rows, "z": z, "index": 0, "targets": config["n_targets"]}
        output, scaled, divide = 0, [], max(1, len(waiting) - 1) if config.get("divide_cross_layer") else 1
        for source, mid in waiting.items():
            w_s, i = mid["w"], mid["index"]
            acts = mid["z"] + w_s[f"post_encs.{i}"] * (mid["z"] > 0)
            acts = acts * w_s[f"post_enc_scales.{i}"] if config["post_encoder_scale"] else acts
            scaled.append(acts)
            if config["coalesce_topk"] == "none":
                out = acts @ w_s.get(f"W_decs.{i}", w_s.get("W_dec")) + w_s[f"b_decs.{i}"]
                if config["skip_connection"]:
                    out = out + mid["x"] @ w_s[f"W_skips.{i}"].T
                output = output + out if source != layer else out + output / divide
            mid["index"] += 1
        if config["coalesce_topk"] != "none":
            together = torch.cat(scaled, 1) if config["coalesce_topk"] == "per-layer" else sum(scaled)
            output = together @ w["W_dec"] + w["b_dec"] + (rows @ w["W_skip"].T if config["skip_connection"] else 0)
        made.append(output * (w["out_norm"] / x.shape[-1] ** 0.5) if config["normalize_io"] else output)
        waiting = {source: mid for source, mid in waiting.items() if mid["index"] < mid["targets"]}
    return features, made


def compare(sae: SAE, folder: Path, x: Tensor = X) -> None:
    features, made = by_runner(folder, x)
    joined = torch.cat(list(x), 1)
    torch.testing.assert_close(sae.encode(joined), torch.cat(features, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae(joined).reconstruction, torch.cat(made, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cross_layer", [3, 2, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_source_tied": True},
        {"coalesce_topk": "concat"},
        {"coalesce_topk": "per-layer"},
        {"divide_cross_layer": True},
        {"per_source_tied": True, "divide_cross_layer": True},
        {"post_encoder_scale": False, "skip_connection": False, "normalize_io": False},
    ],
    ids=str,
)
def test_every_way_to_share_decoders_is_read(options: dict, cross_layer: int, tmp_path: Path):
    write(tmp_path, cross_layer=cross_layer, **options)
    sae = SAE.from_pretrained(tmp_path)
    compare(sae, tmp_path)
    assert type(sae).__name__ == "TopKCrossLayerTranscoderSAE" and sae.config.k == K
    assert sae.config.tied_decoder == ("per_source_tied" in options)
    assert sae.config.base_model == "EleutherAI/pythia-70m" and sae.config.context_length == 64
    assert sae.config.source_places == [f"gpt_neox.layers.{layer}.mlp.input" for layer in range(3)]
    assert sae.config.target_places == [f"gpt_neox.layers.{layer}.mlp.output" for layer in range(3)]


def test_places_that_are_read_can_be_other_modules(tmp_path: Path):
    norms = [f"layers.{layer}.post_attention_layernorm" for layer in range(3)]
    write(tmp_path, run={"hookpoints_in": norms})
    sae = SAE.from_pretrained(tmp_path)
    assert sae.config.source_places == [f"gpt_neox.{norm}.input" for norm in norms]


def test_batchtopk_takes_its_threshold_from_the_caller(tmp_path: Path):
    write(tmp_path, activation="batchtopk")
    with pytest.raises(ValueError, match=r"over a batch of tokens, .* Pass threshold="):
        SAE.from_pretrained(tmp_path)
    sae = SAE.from_pretrained(tmp_path, threshold=0.5)
    assert type(sae).__name__ == "CrossLayerTranscoderSAE" and sae.threshold.tolist() == [0.5] * 3


def test_a_run_is_converted_as_one(tmp_path: Path):
    write(tmp_path / "run")
    assert list(sae_subfolders(tmp_path / "run")) == [""]
    (folder,) = convert(tmp_path / "run", tmp_path / "out")
    compare(SAE.from_pretrained(folder), tmp_path / "run")
    with pytest.raises(ValueError, match="one layer of a cross-layer transcoder .* load the folder above"):
        SAE.from_pretrained(tmp_path / "run" / HOOKS[1])


@pytest.mark.parametrize("form", ["free", "tied", "skip"])
def test_what_is_written_computes_the_same_and_comes_back(form: str, tmp_path: Path):
    places = {
        "hook_point": "+".join(f"gpt_neox.layers.{layer}.mlp.input" for layer in range(LAYERS)),
        "target_hook_point": "+".join(f"gpt_neox.layers.{layer}.mlp.output" for layer in range(LAYERS)),
    }
    sae = make_layers("topk", form, torch.float32, d_out=LAYERS * D_IN, base_model="EleutherAI/pythia-70m", **places)
    sae.save_pretrained(tmp_path / "sae")
    assert main(["convert", str(tmp_path / "sae"), str(tmp_path / "out"), "--to", "clt-training"]) == 0
    x = 2 * torch.randn(LAYERS, 30, D_IN, generator=torch.Generator().manual_seed(3))
    compare(sae, tmp_path / "out", x)
    again = SAE.from_pretrained(tmp_path / "out")
    compare(again, tmp_path / "out", x)
    assert again.config.hook_point == places["hook_point"] and again.config.tied_decoder == (form == "tied")


def test_what_has_no_counterpart_is_refused_by_name(tmp_path: Path):
    for options, message in (
        ({"coalesce_topk": "group"}, "coalesce_topk = 'group', which has no counterpart"),
        ({"coalesce_topk": "concat", "topk_coalesced": True}, "topk_coalesced = True"),
        ({"per_source_tied": True, "secondary_target_tied": True}, "secondary_target_tied = True"),
        ({"activation": "relu"}, "activation = 'relu', which has no counterpart"),
        ({"transcode": False}, "transcode = False"),
    ):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        write(tmp_path / "run", **options)
        with pytest.raises(ValueError, match=message):
            SAE.from_pretrained(tmp_path / "run")
    for name, message in (("post_encs.1", "adds post_enc to features"), ("W_skips.1", "on to later layers")):
        write(tmp_path / "run")
        w = load_file(tmp_path / "run" / HOOKS[0] / "sae.safetensors")
        write_tensors(tmp_path / "run" / HOOKS[0] / "sae.safetensors", {**w, name: w[name] + 1})
        with pytest.raises(ValueError, match=f"layers.0.mlp of .* {message}"):
            SAE.from_pretrained(tmp_path / "run")
    write(tmp_path / "run")
    config = json.loads((tmp_path / "run" / HOOKS[2] / "cfg.json").read_text())
    write_json(tmp_path / "run" / HOOKS[2] / "cfg.json", {**config, "k": 3})
    with pytest.raises(ValueError, match="have k of 2, 3, expected one"):
        SAE.from_pretrained(tmp_path / "run")
    for rule in ("jumprelu", "batch_topk"):
        with pytest.raises(ValueError, match="holds cross-layer transcoders of TopK"):
            export_sae(make_layers(rule, d_out=LAYERS * D_IN), tmp_path / "out", "clt-training")
    unnamed = make_layers("topk", d_out=LAYERS * D_IN, hook_point="a.output+b.output+c.output")
    with pytest.raises(ValueError, match="a.output is no input"):
        export_sae(unnamed, tmp_path / "out", "clt-training")
    assert not (tmp_path / "out").exists()
