"""Llamascopium's crosscoders, cross-layer transcoders and BatchTopK, by its formulas written out.

Formulas are those of llamascopium 2.0.0b34: `benchmarks/several_places_peers.py` compares with its own code.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hfsae import SAE
from hfsae.saved.convert import convert
from tests.interop.foreign import random, write_json, write_tensors

PLACES, N, D, K = 3, 8, 4, 2
X = torch.randn(20, PLACES, D, generator=torch.Generator().manual_seed(3))
HOOKS = {side: [f"blocks.{layer}.hook_{side}" for layer in range(PLACES)] for side in ("resid_mid", "mlp_out")}
LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
COMMON = {"d_model": D, "expansion_factor": 2, "top_k": K, "sparsity_include_decoder_norm": True}
COMMON |= {"norm_activation": "dataset-wise", "model_name": "gpt2"}


def norms(hooks: list[str], seed: int) -> dict[str, Tensor]:
    values = 2 + random(len(hooks), seed=seed).abs()
    return {f"dataset_average_activation_norm.{hook}": value for hook, value in zip(hooks, values, strict=True)}


def scales(w: dict[str, Tensor], hooks: list[str]) -> Tensor:
    return torch.stack([D**0.5 / w[f"dataset_average_activation_norm.{hook}"] for hook in hooks])


def crosscoder(folder: Path, activation: str, **config) -> dict[str, Tensor]:
    hooks = HOOKS["resid_mid"]
    w = {"W_E": random(PLACES, D, N, seed=1), "b_E": random(PLACES, N, seed=2), "W_D": random(PLACES, N, D, seed=3)}
    w |= {"b_D": random(PLACES, D, seed=4), **norms(hooks, 5)}
    if activation == "jumprelu":
        w[LOG_THRESHOLD] = random(N, seed=6)
    write_json(
        folder / "config.json",
        {"sae_type": "crosscoder", "act_fn": activation, "hook_points": hooks, **COMMON, **config},
    )
    write_tensors(folder / "sae_weights.safetensors", w)
    return w


def crosscoder_by_formula(w: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features (tokens, places, n) and reconstructions (tokens, places, d)."""
    scale = scales(w, HOOKS["resid_mid"])[:, None]
    pre = (torch.einsum("tpd,pdn->tpn", X * scale, w["W_E"]) + w["b_E"]).sum(1, keepdim=True)
    norm = w["W_D"].norm(dim=-1)
    gate = (pre * norm) > (w[LOG_THRESHOLD].exp() if LOG_THRESHOLD in w else 0)
    features = pre * norm * gate / norm
    return features, (torch.einsum("tpn,pnd->tpd", features, w["W_D"]) + w["b_D"]) / scale


def clt(folder: Path, activation: str, unit: bool = False, **config) -> dict[str, Tensor]:
    reads, writes = HOOKS["resid_mid"], HOOKS["mlp_out"]
    w = {"W_E": random(PLACES, D, N, seed=1), "b_E": random(PLACES, N, seed=2), **norms(reads, 5), **norms(writes, 6)}
    if activation == "jumprelu":
        w[LOG_THRESHOLD] = random(PLACES, N, seed=7)
    for layer in range(PLACES):
        w |= {f"W_D.{layer}": random(layer + 1, N, D, seed=10 + layer), f"b_D.{layer}": random(D, seed=20 + layer)}
    if unit:
        for source, norm in enumerate(feature_norms(w)):
            for layer in range(source, PLACES):
                w[f"W_D.{layer}"][source] /= norm[:, None]
    places = {"hook_points_in": reads, "hook_points_out": writes}
    write_json(folder / "config.json", {"sae_type": "clt", "act_fn": activation, **places, **COMMON, **config})
    write_tensors(folder / "sae_weights.safetensors", w)
    return w


def feature_norms(w: dict[str, Tensor]) -> Tensor:
    """(layers, n): how long what a feature writes at all layers is."""
    squares = [torch.stack([w[f"W_D.{t}"][s].pow(2).sum(-1) for t in range(s, PLACES)]).sum(0) for s in range(PLACES)]
    return torch.stack(squares).sqrt()


def clt_by_formula(w: dict[str, Tensor], select, by_norm: bool = True) -> tuple[Tensor, Tensor]:
    """Features (tokens, layers, n) and reconstructions (tokens, layers, d)."""
    norm = feature_norms(w) if by_norm else 1
    pre = torch.einsum("tld,ldn->tln", X * scales(w, HOOKS["resid_mid"])[:, None], w["W_E"]) + w["b_E"]
    features = select(pre * norm) / norm
    made = [torch.einsum("tsn,snd->td", features[:, : t + 1], w[f"W_D.{t}"]) + w[f"b_D.{t}"] for t in range(PLACES)]
    return features, torch.stack(made, 1) / scales(w, HOOKS["mlp_out"])[:, None]


def compare(sae: SAE, features: Tensor, made: Tensor) -> None:
    assert 0.02 < (features != 0).float().mean() < 0.98
    torch.testing.assert_close(sae.encode(X.flatten(1)), features.flatten(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(sae(X.flatten(1)).reconstruction, made.flatten(1), rtol=0, atol=1e-5)


def test_a_crosscoder_of_relu_has_one_feature_for_each_of_its_own(tmp_path: Path):
    features, made = crosscoder_by_formula(crosscoder(tmp_path, "relu"))
    assert torch.allclose(features, features[:, :1].expand_as(features))  # the same at all places
    sae = SAE.from_pretrained(tmp_path)
    assert type(sae).__name__ == "StandardCrosscoderSAE" and sae.config.source_names == HOOKS["resid_mid"]
    torch.testing.assert_close(sae.encode(X.flatten(1)), features[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(sae(X.flatten(1)).reconstruction, made.flatten(1), rtol=0, atol=1e-5)


def test_a_crosscoder_of_jumprelu_has_a_feature_for_each_place(tmp_path: Path):
    features, made = crosscoder_by_formula(crosscoder(tmp_path, "jumprelu"))
    assert ((features != 0).any(1) & (features == 0).any(1)).any()  # some are active at some places alone
    sae = SAE.from_pretrained(tmp_path)
    compare(sae, features, made)
    assert type(sae).__name__ == "JumpReLUCrosscoderSAE" and sae.config.n_features == PLACES * N
    (folder,) = convert(tmp_path, tmp_path / "out")
    assert torch.equal(SAE.from_pretrained(folder).encode(X.flatten(1)), sae.encode(X.flatten(1)))


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_a_cross_layer_transcoder_with_thresholds(activation: str, by_norm: bool, tmp_path: Path):
    w = clt(tmp_path, activation, sparsity_include_decoder_norm=by_norm)
    threshold = w[LOG_THRESHOLD].exp() if activation == "jumprelu" else 0
    sae = SAE.from_pretrained(tmp_path)
    compare(sae, *clt_by_formula(w, lambda pre: pre * (pre > threshold), by_norm))
    assert type(sae).__name__ == "JumpReLUCrossLayerTranscoderSAE"
    assert sae.config.base_model == "openai-community/gpt2"
    assert sae.config.target_places == [f"transformer.h.{layer}.mlp.output" for layer in range(PLACES)]


@pytest.mark.parametrize("by_norm", [True, False])
def test_a_cross_layer_transcoder_of_topk(by_norm: bool, tmp_path: Path):
    def select(pre: Tensor) -> Tensor:
        kept = pre.relu().topk(K, -1)
        return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)

    w = clt(tmp_path, "topk", unit=by_norm, sparsity_include_decoder_norm=by_norm)
    sae = SAE.from_pretrained(tmp_path)
    compare(sae, *clt_by_formula(w, select, by_norm))
    assert type(sae).__name__ == "TopKCrossLayerTranscoderSAE" and sae.config.k == K


def test_a_cross_layer_transcoder_of_batch_topk_takes_its_threshold_from_the_caller(tmp_path: Path):
    w = clt(tmp_path, "batchtopk", unit=True)
    with pytest.raises(
        ValueError, match=r"over a batch of tokens, .* Pass threshold=\.\.\., a number from 0 on, got None"
    ):
        SAE.from_pretrained(tmp_path)
    sae = SAE.from_pretrained(tmp_path, threshold=0.4)
    compare(sae, *clt_by_formula(w, lambda pre: pre * (pre > 0.4)))
    assert type(sae).__name__ == "CrossLayerTranscoderSAE"


def test_an_sae_of_batch_topk_takes_its_threshold_from_the_caller_and_can_be_calibrated(tmp_path: Path):
    w = {"W_E": random(D, N, seed=1), "b_E": random(N, seed=2), "W_D": random(N, D, seed=3), "b_D": random(D, seed=4)}
    w["W_D"] /= w["W_D"].norm(dim=1, keepdim=True)
    hooks = dict.fromkeys(("hook_point_in", "hook_point_out"), "blocks.1.hook_resid_post")
    config = {**COMMON, "sae_type": "sae", "act_fn": "batchtopk", "norm_activation": "inference", **hooks}
    write_json(tmp_path / "config.json", config)
    write_tensors(tmp_path / "sae_weights.safetensors", w)
    for wrong in (None, -1.0, True, "0.3"):
        with pytest.raises(ValueError, match="its files hold no threshold for single ones"):
            SAE.from_pretrained(tmp_path, **({} if wrong is None else {"threshold": wrong}))
    x = X.flatten(0, 1)
    pre = x @ w["W_E"] + w["b_E"]
    sae = SAE.from_pretrained(tmp_path, threshold=0.3)
    torch.testing.assert_close(sae.encode(x), pre * (pre > 0.3), rtol=0, atol=1e-5)
    # Its own rule over this batch: the k largest a token, on average.
    least = pre.relu().flatten().topk(K * len(x)).values[-1]
    sae.calibrate(lambda: [x])
    torch.testing.assert_close(sae.encode(x), pre * (pre >= least), rtol=0, atol=1e-5)
    assert sae.config.k == K and type(sae).__name__ == "BatchTopKSAE"


def test_what_has_no_counterpart_is_refused_by_name(tmp_path: Path):
    crosscoder(tmp_path, "topk")
    with pytest.raises(ValueError, match="act_fn = 'topk', which has no counterpart here; known are relu, jumprelu"):
        SAE.from_pretrained(tmp_path)
    for activation in ("layertopk", "batchlayertopk"):
        clt(tmp_path, activation)
        with pytest.raises(ValueError, match=f"act_fn = '{activation}', which has no counterpart here"):
            SAE.from_pretrained(tmp_path)
    clt(tmp_path, "topk")
    with pytest.raises(ValueError, match="rows that are not of unit norm"):
        SAE.from_pretrained(tmp_path)
    clt(tmp_path, "relu", norm_activation="token-wise")
    with pytest.raises(ValueError, match="norm_activation = 'token-wise', which has no counterpart"):
        SAE.from_pretrained(tmp_path)
    clt(tmp_path, "relu")
    with pytest.raises(ValueError, match="threshold"):  # which a ReLU does not need
        SAE.from_pretrained(tmp_path, threshold=0.3)
    for kind in ("lorsa", "molt"):
        clt(tmp_path, "relu", sae_type=kind)
        with pytest.raises(ValueError, match=f"sae_type = '{kind}', which has no counterpart here"):
            SAE.from_pretrained(tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path):
    clt(tmp_path, "relu", hook_points_in=HOOKS["resid_mid"][:2])
    with pytest.raises(ValueError, match="weights of .* hold W_D.2"):
        SAE.from_pretrained(tmp_path)
    clt(tmp_path, "relu", hook_points_out=HOOKS["mlp_out"][:2])
    with pytest.raises(ValueError, match="must join 3 places"):
        SAE.from_pretrained(tmp_path)
    crosscoder(tmp_path, "relu", hook_points=HOOKS["resid_mid"][:2])
    with pytest.raises(ValueError, match=r"W_E of .* has shape \(3, 4, 8\), expected 3 axes, the first of size 2"):
        SAE.from_pretrained(tmp_path)
    crosscoder(tmp_path, "relu", hook_points="blocks.0.hook_resid_post")
    with pytest.raises(ValueError, match="expected a list of hook points"):
        SAE.from_pretrained(tmp_path)
