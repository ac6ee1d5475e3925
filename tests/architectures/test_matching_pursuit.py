"""Matching pursuit: features one after the other, by rows that read and write."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hfsae import SAE, MatchingPursuitSAE, MatchingPursuitSAEConfig, TopKSAE, TopKSAEConfig, export_sae
from hfsae.autoencoder.initialisation import initialise
from hfsae.circuits.feature_sources import FeatureSource
from hfsae.hooks import HookPoint
from hfsae.parallel.sharded_sae import refuse_unfit
from tests.architectures.variants import N_FEATURES, VARIANTS, activations, state
from tests.training.tiny import sparse_rows, trainer


def make(*sizes: int, **options: Any) -> MatchingPursuitSAE:
    """One with rows of unit norm."""
    sae = VARIANTS["matching_pursuit"].make(*sizes, **options)
    with torch.no_grad():
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    return sae


def missing(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """What is missing of scaled activations."""
    return (sae.scaled(x) - sae.b_dec - sae.encode(x) @ sae.W_dec).norm(dim=-1)


def test_the_first_feature_is_the_row_with_the_largest_product():
    sae, x = make(k=1), activations(50)
    pre = sae.pre_activations(x)
    expected = pre.relu() * torch.zeros_like(pre).scatter(1, pre.argmax(1, keepdim=True), 1.0)
    torch.testing.assert_close(sae.encode(x), expected)


def test_more_steps_leave_less_and_no_more_features_than_steps():
    x = activations(50)
    left = [missing(sae := make(k=k), x) for k in (1, 2, 4, 8)]
    assert all((after <= before + 1e-12).all() for before, after in zip(left, left[1:], strict=False))
    assert 1 < (sae.encode(x) != 0).sum(1).max() <= 8 and sae.encode(x).min() >= 0


def test_a_feature_that_is_picked_twice_is_one_entry_with_the_sum():
    """Three rows in a plane: what the second takes off, the first finds again."""
    config = MatchingPursuitSAEConfig(d_in=2, n_features=2, k=3, stop_on_duplicate=False)
    sae = MatchingPursuitSAE(config).double()
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [-0.6, 0.8]]))
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    # 1 of the first leaves (0, 1); 0.8 of the second leaves (0.48, 0.36); 0.48 of the first again.
    features = sae.encode_sparse(x)
    torch.testing.assert_close(features.to_dense(), torch.tensor([[1.48, 0.8]], dtype=torch.float64))
    assert features.values.shape == (1, 2) and sae(x, state=state()).statistics.l0 == 2
    sae.config.stop_on_duplicate, sae.config.k = True, 9
    torch.testing.assert_close(sae.encode(x), features.to_dense())


def test_a_token_ends_below_the_threshold():
    sae, x = make(k=12, residual_threshold=1.0), activations(50)
    left, before = missing(sae, x), missing(make(k=12), x)
    assert (left > before).any()
    one_less = torch.stack([missing(make(k=k), x) for k in range(1, 13)])
    # Each stops at its first step below the threshold, or runs out of steps.
    first = (one_less < 1.0).byte().argmax(0)
    reached = (one_less < 1.0).any(0)
    torch.testing.assert_close(left[reached], one_less.gather(0, first[None])[0][reached])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stop_on_duplicate", [True, False])
def test_a_token_of_which_nothing_is_left_ends(dtype: torch.dtype, stop_on_duplicate: bool):
    """6 rows at right angles and their opposites: 6 steps take all, and rounding errors are no features."""
    sae = make(6, 12, k=12, stop_on_duplicate=stop_on_duplicate, dtype=dtype)
    rows = torch.linalg.qr(activations(6, seed=4)).Q.to(dtype)
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([rows, -rows]))
    x = activations(200, dtype=dtype)
    products = (sae.scaled(x) - sae.b_dec) @ rows.T
    expected = torch.cat([products, -products], 1).relu()
    for found in (sae.encode(x), torch.vmap(sae.encode)(x)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert ((found != 0).sum(1) <= 6).all() and sae(x, state=state()).statistics.l0 <= 6


def test_what_reads_other_than_it_writes_is_refused_before_a_run_starts(tmp_path: Path):
    options = {"architecture": "matching_pursuit", "hook_point": "mlp_in.1", "target_hook_point": "mlp_out.1"}
    with pytest.raises(ValueError, match="takes off what it writes from what it reads, .* takes no target_hook_point"):
        trainer(tmp_path, **options).train()


def test_the_start_leaves_rows_at_unit_norm():
    config = MatchingPursuitSAEConfig(d_in=16, n_features=48, k=4)
    rows = (fresh := SAE.from_config(config)).W_dec.detach().clone()
    torch.testing.assert_close(initialise(fresh, 5 + 3 * sparse_rows(256)).W_dec.detach(), rows)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(48))


def test_with_one_step_it_is_a_topk_of_one_whose_rows_read_too():
    sae, x = make(k=1), activations(60)
    topk = TopKSAE(TopKSAEConfig(d_in=6, n_features=N_FEATURES, k=1)).double()
    topk.load_state_dict({**sae.state_dict(), "encoder.weight": sae.W_dec, "encoder.bias": sae.b_enc})
    torch.testing.assert_close(sae.encode(x), topk.encode(x))
    point = HookPoint("layers.1", "output")
    ours, theirs = (FeatureSource("mine", one, point, point, torch.ones(60).bool()).active(x) for one in (sae, topk))
    for part in ("values", "readers", "constants"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part))


def test_it_has_no_encoder_of_its_own():
    sae = make()
    assert [name for name, _ in sae.named_parameters()] == ["W_dec", "b_dec"]
    assert sae.encoder.weight is sae.W_dec and not sae.b_enc.any()


def test_an_input_scale_goes_into_the_features_and_the_threshold():
    sae, x = make(k=6, residual_threshold=0.7), activations(40)
    scale, before = sae.input_scale.double(), sae(x)
    with pytest.raises(ValueError, match="both read and write, and cannot take up a scale: keep must be 'unit_rows'"):
        sae.fold_input_scale()
    after = sae.fold_input_scale("unit_rows")(x)
    torch.testing.assert_close(after.features.to_dense(), before.features.to_dense() / scale, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after.reconstruction, before.reconstruction, rtol=1e-6, atol=1e-6)
    assert sae.config.residual_threshold == pytest.approx(0.7 / float(scale)) and sae.input_scale == 1


@pytest.mark.parametrize("transform", ["none", "center", "layer_norm", "constant_norm"])
def test_it_goes_to_saelens_and_back(transform: str, tmp_path: Path):
    places = {"base_model": "EleutherAI/pythia-70m", "hook_point": "gpt_neox.layers.2.output"}
    policy = {"exclude_positions": [], "context_length": 64, "prepend_bos": True, "exclude_special_tokens": False}
    sae = make(k=5, residual_threshold=0.3, input_transform=transform, dtype=torch.float32, **places, **policy)
    x = activations(30, dtype=torch.float32)
    again = SAE.from_pretrained(export_sae(sae, tmp_path, "saelens"))
    torch.testing.assert_close(again(x).reconstruction, sae(x).reconstruction, rtol=1e-4, atol=1e-5)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert (config["architecture"], config["max_iterations"]) == ("matching_pursuit", 5)
    assert config["stop_on_duplicate_support"] is True and "k" not in config


@pytest.mark.parametrize("format", ["sparsify", "circuit-tracer"])
def test_other_projects_have_nothing_like_it(format: str, tmp_path: Path):
    with pytest.raises(ValueError):
        export_sae(make(), tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_what_needs_one_pass_or_cuts_features_refuses():
    point = HookPoint("layers.1", "output")
    with pytest.raises(ValueError, match="finds features one after the other"):
        FeatureSource("mine", make(), point, point, torch.ones(3))
    with pytest.raises(ValueError, match="does not know how to cut matching_pursuit"):
        refuse_unfit(make(), processes=2)


@pytest.mark.parametrize(
    "options, why",
    [
        ({"k": 0}, "k must be a positive number of steps, got 0"),
        ({"residual_threshold": -1.0}, "residual_threshold must be 0 or more"),
        ({"residual_threshold": float("nan")}, "residual_threshold must be 0 or more"),
        *(({name: value}, "takes off what it writes") for name, value in (("skip", True), ("subtract_b_dec", False))),
        ({"rescale_by_decoder_norm": True}, "takes off what it writes"),
        ({"hook_point": "a", "target_hook_point": "b"}, "takes off what it writes"),
    ],
)
def test_what_tied_rows_cannot_do_is_refused(options: dict, why: str):
    with pytest.raises(StrictDataclassError, match=why):
        MatchingPursuitSAEConfig(d_in=6, n_features=N_FEATURES, **options)


def test_with_k_takes_other_steps():
    sae, x = make(k=8), activations(20)
    torch.testing.assert_close(sae.with_k(2).encode(x), make(k=2).encode(x))
