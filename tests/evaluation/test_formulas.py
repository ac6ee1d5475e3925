"""Every formula against its definition written out by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hfsae.evaluation import MEASURED, METRICS, finalise, reconstruction_sums
from hfsae.functional import SparseFeatures
from tests.evaluation import longhand


def sums(**values: float | list[float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


NATS = {"n_predictions": 10, "clean_nats": 20, "spliced_nats": 23, "zero_nats": 80, "mean_nats": 50, "kl_nats": 2.5}


def test_losses_and_what_is_recovered_by_hand():
    metrics = finalise(sums(**NATS))
    assert metrics == {
        "ce_clean": 2.0,
        "ce_spliced": 2.3,
        "ce_zero": 8.0,
        "ce_mean": 5.0,
        "loss_recovered": pytest.approx(5.7 / 6),
        "loss_recovered_mean": pytest.approx(2.7 / 3),
        "ce_increase": pytest.approx(0.3),
        "kl": 0.25,
        "notes": {},
    }


def test_every_reconstruction_metric_by_hand():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 6)) + 4).astype(np.float32)
    x_hat = (x + 0.5 * rng.normal(size=x.shape)).astype(np.float32)
    z = np.maximum(rng.normal(size=(200, 30)) - np.linspace(-1, 5, 30), 0).astype(np.float32)
    features = SparseFeatures.from_dense(torch.from_numpy(z))
    metrics = finalise(
        reconstruction_sums(torch.from_numpy(x), torch.from_numpy(x_hat), features, torch.full((6,), 4))
    )
    expected = longhand.reconstruction(x, x_hat, z)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert metrics["density"] == longhand.density(z)
    assert metrics["density"]["never"] > 0 and sum(metrics["density"]["counts"]) + metrics["density"]["never"] == 30


def test_the_mean_predictor_explains_nothing_and_the_truth_everything():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).double() + 7
    nothing = SparseFeatures.from_dense(torch.zeros(500, 3))
    mean = finalise(reconstruction_sums(x, x.mean(0).expand_as(x), nothing, torch.full((4,), 6.0)))
    assert mean["explained_variance"] == pytest.approx(0, abs=1e-12) and mean["fvu"] == pytest.approx(1)
    truth = finalise(reconstruction_sums(x, x, nothing, torch.full((4,), 6.0)))
    assert truth["explained_variance"] == 1 and truth["fvu"] == truth["mse"] == 0
    assert truth["cosine"] == pytest.approx(1) and truth["l2_ratio"] == 1


def test_a_reconstruction_that_is_off_by_a_vector_is_not_the_truth():
    # dictionary-learning 0.1.0 says 1 - var(x - x_hat) / var(x) in evaluation.py, which is 1.0 here.
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).double()
    off = reconstruction_sums(x, x + 3, SparseFeatures.from_dense(torch.zeros(500, 3)), torch.zeros(4))
    by_hand = 1 - 500 * 4 * 3**2 / float((x - x.mean(0)).square().sum())
    assert finalise(off)["explained_variance"] == pytest.approx(by_hand) and by_hand < -7


def test_what_an_ablation_that_hardly_hurts_recovers_is_undefined():
    metrics = finalise(sums(**NATS | {"zero_nats": 20.4}))
    assert metrics["loss_recovered"] is None and metrics["loss_recovered_mean"] is not None
    assert "+0.0400 nats, less than 0.05" in metrics["notes"]["loss_recovered"]


def test_an_ablation_that_the_model_predicts_better_with_leaves_no_loss_to_recover():
    """An SAE that costs 0.3 nats had recovered 600 %, where taking the activations away gains 0.06."""
    metrics = finalise(sums(**NATS | {"zero_nats": 19.4}))
    assert metrics["loss_recovered"] is None and metrics["ce_increase"] == pytest.approx(0.3)
    assert "-0.0600 nats: the model predicts better without them" in metrics["notes"]["loss_recovered"]


def test_without_tokens_every_metric_is_none_with_its_reason():
    empty = reconstruction_sums(
        torch.zeros(0, 4), torch.zeros(0, 4), SparseFeatures.from_dense(torch.zeros(0, 3)), torch.zeros(4)
    )
    metrics = finalise(empty | sums(**dict.fromkeys(NATS, 0)))
    assert metrics.keys() - {"notes"} == MEASURED.keys() == metrics["notes"].keys()
    assert all(metrics[name] is None for name in MEASURED)


def test_activations_that_do_not_vary_have_no_explained_variance():
    x = torch.ones(5, 3)
    metrics = finalise(reconstruction_sums(x, x, SparseFeatures.from_dense(torch.zeros(5, 2)), torch.ones(3)))
    assert metrics["explained_variance"] is None and "do not vary" in metrics["notes"]["explained_variance"]


def test_only_what_the_sums_allow_is_computed():
    assert finalise(sums(active=6, n_tokens=3)) == {"l0": 2, "notes": {}}


def test_a_feature_on_every_token_and_one_on_hardly_any_are_in_the_outer_bins():
    counts = finalise(sums(tokens_firing=[1e9, 1, 0], n_tokens=1e9))["density"]
    assert counts["counts"][0] == counts["counts"][-1] == counts["never"] == 1


def test_every_metric_that_people_read_about_is_computed():
    assert {metric.name for metric in METRICS} == MEASURED.keys() - {"density"}
