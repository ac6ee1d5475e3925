"""What is written for Llamascopium computes the same by its formulas written out, and comes back.

Formulas are those of llamascopium 2.0.0b34: `benchmarks/several_places_peers.py` compares with its own code.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hfsae import SAE, export_sae
from hfsae.cli import main
from tests.architectures.test_cross_layer_transcoder import D_IN, LAYERS
from tests.architectures.test_cross_layer_transcoder import make as make_layers
from tests.interop.foreign import D
from tests.interop.test_llamascopium_layers import crosscoder as write_theirs
from tests.interop.test_writers import MLP, make, same

LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
X = 2 * torch.randn(30, D, generator=torch.Generator().manual_seed(3)) + 0.5
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
WIDTH = 3
SOURCES = {
    "source_names": ["early", "late"],
    "source_widths": [WIDTH, WIDTH],
    "hook_point": "gpt_neox.layers.1.output+gpt_neox.layers.4.output",
}


def stored(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    return json.loads((folder / "config.json").read_text()), load_file(folder / "sae_weights.safetensors")


def by_formula(config: dict, w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and reconstructions of an SAE at one place."""
    assert not config["sparsity_include_decoder_norm"]
    assert int(config["d_model"] * config["expansion_factor"]) == w["W_E"].shape[1] == w["W_D"].shape[0]
    factor = len(x[0]) ** 0.5 / x.norm(dim=1, keepdim=True) if config["norm_activation"] == "token-wise" else 1
    pre = (x * factor) @ w["W_E"] + w["b_E"]
    if config["act_fn"] == "topk":
        kept = pre.relu().topk(config["top_k"], -1)
        features = torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)
    else:
        features = pre * (pre > (w[LOG_THRESHOLD].exp() if config["act_fn"] == "jumprelu" else 0))
    return features, (features @ w["W_D"] + w["b_D"]) / factor


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "batch_topk", "matryoshka"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rescale_by_decoder_norm": True},
        {"input_transform": "constant_norm"},
        {"n_features": 23, "d_in": D},  # no multiple of the width
        MLP,
    ],
    ids=["plain", "decoder norm", "constant norm", "odd", "transcoder"],
)
def test_one_place(architecture: str, options: dict, tmp_path: Path):
    sae = make(architecture, scale=1.5, **options)
    folder = export_sae(sae, tmp_path / "out", "llamascopium")
    features, made = by_formula(*stored(folder), X)
    torch.testing.assert_close(features, sae.encode(X), **CLOSE)
    torch.testing.assert_close(made, sae(X).reconstruction, **CLOSE)
    again = SAE.from_pretrained(folder)
    same(again, sae, **CLOSE)
    for fact in ("base_model", "hook_point", "target_hook_point", "context_length"):
        assert getattr(again.config, fact) == getattr(sae.config, fact), fact


def test_batch_topk_can_go_as_it_is_trained_there(tmp_path: Path):
    sae = make("batch_topk", scale=1.5)
    config, w = stored(export_sae(sae, tmp_path, "llamascopium", as_batchtopk=True))
    assert config["act_fn"] == "batchtopk" and config["top_k"] == sae.config.k and LOG_THRESHOLD not in w
    same(SAE.from_pretrained(tmp_path, threshold=float(sae.threshold)), sae, **CLOSE)
    layers = make_layers("batch_topk", "tied", torch.float32, d_out=LAYERS * D_IN, base_model="openai-community/gpt2")
    config, w = stored(export_sae(layers, tmp_path / "layers", "llamascopium", as_batchtopk=True))
    assert config["act_fn"] == "batchtopk" and LOG_THRESHOLD not in w
    with pytest.raises(ValueError, match="a batchtopk is written of batch_topk"):
        export_sae(make("jumprelu"), tmp_path / "no", "llamascopium", as_batchtopk=True)
    assert not (tmp_path / "no").exists()


# -- crosscoders ------------------------------------------------------------------------------------------------------
def crosscoder(architecture: str, **options) -> SAE:
    return make(architecture, scale=1.5, **{**SOURCES, **options})


def crosscoder_by_formula(config: dict, w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Features (tokens, places, n) and reconstructions (tokens, places, d)."""
    assert config["sparsity_include_decoder_norm"] and config["norm_activation"] == "dataset-wise"
    means = torch.stack([w[f"dataset_average_activation_norm.{hook}"] for hook in config["hook_points"]])
    scale = config["d_model"] ** 0.5 / means[:, None]
    pre = (torch.einsum("tpd,pdn->tpn", x * scale, w["W_E"]) + w["b_E"]).sum(1, keepdim=True)
    norm = torch.linalg.vector_norm(w["W_D"], dim=-1)
    gated = pre * norm
    features = gated * (gated > (w[LOG_THRESHOLD].exp() if LOG_THRESHOLD in w else 0)) / norm
    return features, (torch.einsum("tpn,pnd->tpd", features, w["W_D"]) + w["b_D"]) / scale


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("architecture", ["standard_crosscoder", "jumprelu_crosscoder", "crosscoder"])
def test_a_crosscoder(architecture: str, empty: bool, tmp_path: Path):
    sae = crosscoder(architecture)
    if empty:  # features that write nothing into a source: llamascopium divides by their length there
        with torch.no_grad():
            sae.W_dec[::2, :WIDTH] = 0
            sae.W_dec[5] = 0
    config, w = stored(export_sae(sae, tmp_path / "out", "llamascopium"))
    features, made = crosscoder_by_formula(config, w, X.unflatten(1, (2, WIDTH)))
    mine = sae.encode(X)
    assert 0.02 < (mine != 0).float().mean() < 0.98
    if architecture == "standard_crosscoder":
        assert config["act_fn"] == "relu" and features.shape[-1] == sae.config.n_features
        features = features[:, 0]
    else:  # a copy of each feature for each place
        assert config["act_fn"] == "jumprelu" and features.shape[-1] == 2 * sae.config.n_features
        by_copy = features.unflatten(-1, (2, -1))
        features = by_copy[:, 0, 0]
        torch.testing.assert_close(by_copy[:, 1, 1], features, **CLOSE)
        if not empty:
            assert not by_copy[:, 0, 1].any() and not by_copy[:, 1, 0].any()
    torch.testing.assert_close(features, mine, **CLOSE)
    torch.testing.assert_close(made.flatten(1), sae(X).reconstruction, **CLOSE)
    again = SAE.from_pretrained(tmp_path / "out")
    same(again, sae, **CLOSE)
    assert again.config.n_features == sae.config.n_features and again.config.hook_point == sae.config.hook_point


def test_a_crosscoder_with_one_gate_for_all_places_needs_no_copies(tmp_path: Path):
    sae = crosscoder("jumprelu_crosscoder")
    with torch.no_grad():
        sae.W_dec[:, WIDTH:] = sae.W_dec[:, :WIDTH].flip(1)  # as long
    config, w = stored(export_sae(sae, tmp_path, "llamascopium"))
    assert w["W_E"].shape[-1] == sae.config.n_features
    features, made = crosscoder_by_formula(config, w, X.unflatten(1, (2, WIDTH)))
    torch.testing.assert_close(features[:, 0], sae.encode(X), **CLOSE)
    torch.testing.assert_close(made.flatten(1), sae(X).reconstruction, **CLOSE)


def test_a_crosscoder_of_theirs_goes_back_as_it_came(tmp_path: Path):
    before = write_theirs(tmp_path / "theirs", "jumprelu")
    folder = export_sae(SAE.from_pretrained(tmp_path / "theirs"), tmp_path / "back", "llamascopium")
    after = load_file(folder / "sae_weights.safetensors")
    assert after.keys() == before.keys()
    summed = {name: w["b_E"].sum(0) for name, w in (("before", before), ("after", after))}
    torch.testing.assert_close(summed["after"], summed["before"])
    for name in before.keys() - {"b_E"}:
        torch.testing.assert_close(after[name], before[name], msg=name)


def test_half_precision_holds_the_short_rows(tmp_path: Path):
    sae = crosscoder("jumprelu_crosscoder").half()
    config, w = stored(export_sae(sae, tmp_path, "llamascopium"))
    assert config["dtype"] == "float32" and torch.linalg.vector_norm(w["W_D"], dim=-1).min() > 0
    _, made = crosscoder_by_formula(config, w, X.unflatten(1, (2, WIDTH)))
    torch.testing.assert_close(made.flatten(1), sae.float()(X).reconstruction, **CLOSE)


# -- cross-layer transcoders ------------------------------------------------------------------------------------------
def layers_by_formula(config: dict, w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Features (tokens, layers, n) and reconstructions (tokens, layers, d) from (tokens, layers, d)."""
    assert not config["sparsity_include_decoder_norm"] and config["norm_activation"] == "inference"
    pre = torch.einsum("tld,ldn->tln", x, w["W_E"]) + w["b_E"]
    if config["act_fn"] == "topk":
        kept = pre.relu().topk(config["top_k"], -1)
        features = torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)
    else:
        features = pre * (pre > w[LOG_THRESHOLD].exp())
    made = [
        torch.einsum("tsn,snd->td", features[:, : t + 1], w[f"W_D.{t}"]) + w[f"b_D.{t}"] for t in range(x.shape[1])
    ]
    return features, torch.stack(made, 1)


@pytest.mark.parametrize("rule", ["batch_topk", "topk", "jumprelu"])
@pytest.mark.parametrize("form", ["free", "tied"])
def test_a_cross_layer_transcoder(rule: str, form: str, tmp_path: Path):
    sae = make_layers(rule, form, torch.float32, d_out=LAYERS * D_IN, base_model="openai-community/gpt2")
    sae.save_pretrained(tmp_path / "sae")
    assert main(["convert", str(tmp_path / "sae"), str(tmp_path / "out"), "--to", "llamascopium"]) == 0
    config, w = stored(tmp_path / "out")
    assert config["hook_points_in"] == [f"blocks.{layer}.mlp.hook_in" for layer in range(LAYERS)]
    x = 2 * torch.randn(30, LAYERS * D_IN, generator=torch.Generator().manual_seed(3))
    features, made = layers_by_formula(config, w, x.unflatten(1, (LAYERS, D_IN)))
    assert 0.02 < (features != 0).float().mean() < 0.98
    torch.testing.assert_close(features.flatten(1), sae.encode(x), **CLOSE)
    torch.testing.assert_close(made.flatten(1), sae(x).reconstruction, **CLOSE)
    again = SAE.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(again(x).reconstruction, sae(x).reconstruction, **CLOSE)
    assert again.config.target_places == [f"transformer.h.{layer}.mlp.output" for layer in range(LAYERS)]


@pytest.mark.parametrize(
    "sae, reason",
    [
        (lambda: make("gated"), "it has no such rule: train one of standard, topk, jumprelu, batch_topk, matryoshka."),
        (lambda: make("topk", activation="groupmax"), "it has no groupmax"),
        (lambda: make("topk", input_transform="layer_norm"), "it has no layer_norm of what is read"),
        (lambda: make("standard", skip=True, **MLP), "it has no skip connection"),
        (lambda: make("standard", d_out=5, subtract_b_dec=False, **MLP), "places of one width alone"),
        (lambda: crosscoder("topk_crosscoder"), "choose the k largest at each place by itself"),
        (lambda: crosscoder("crosscoder", source_widths=[2, 4]), "places of one width alone"),
        (lambda: make_layers("topk", base_model="gpt2"), "places of one width alone"),
        (lambda: make_layers("topk", "skip", d_out=LAYERS * D_IN, base_model="gpt2"), "it has no skip connection"),
    ],
)
def test_what_has_no_counterpart_is_refused_and_nothing_is_written(sae, reason: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"llamascopium has nothing that computes what this .* does: .*{reason}"):
        export_sae(sae(), tmp_path / "out", "llamascopium")
    assert not (tmp_path / "out").exists()


def test_places_need_names_that_tell_them_apart(tmp_path: Path):
    two_models = crosscoder("standard_crosscoder", hook_point="gpt_neox.layers.1.output")
    with pytest.raises(ValueError, match=r"tells places of one model apart .* pass hook_points=\[\.\.\.\]"):
        export_sae(two_models, tmp_path / "out", "llamascopium")
    unknown = make("topk", base_model="somebody/some-model", hook_point="layers.2.output")
    with pytest.raises(ValueError, match=r"one for each of layers.2.output of somebody/some-model, got \[None\]"):
        export_sae(unknown, tmp_path / "out", "llamascopium")
    assert not (tmp_path / "out").exists()
    config, _ = stored(export_sae(unknown, tmp_path, "llamascopium", hook_points=["blocks.2.hook_resid_post"]))
    assert config["hook_point_in"] == config["hook_point_out"] == "blocks.2.hook_resid_post"
