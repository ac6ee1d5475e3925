import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from hfsae import BatchTopKSAEConfig
from hfsae.autoencoder.outputs import StepState, StepStatistics
from tests.architectures.variants import D_IN, N_FEATURES, VARIANTS, activations, state

K = 3


def make(**options):
    return VARIANTS["batch_topk"].make(**options)


def after(sae, kept: float, step: int) -> Tensor:
    statistics = StepStatistics(torch.zeros(N_FEATURES), torch.tensor(0.0), torch.tensor(1.0), torch.tensor(kept))
    sae.after_step(statistics, StepState(step=step))
    return sae.threshold.clone()


# -- the number of active features ------------------------------------------------------------------------------------
def test_in_training_k_a_token_are_active_on_average_and_not_on_each():
    out = make()(activations(200), state=state())
    per_token = (out.features.to_dense() != 0).sum(1)
    assert per_token.sum() == K * 200 and out.statistics.l0 == K
    assert per_token.unique().numel() > 1


def test_after_calibration_the_mean_in_use_is_k_within_5_percent_on_new_activations():
    sae = make(d_in=16, n_features=128, k=8)
    sae.calibrate(lambda: iter(activations(4096, 16, seed=3).split(512)))
    mean = (sae.encode(activations(4096, 16, seed=4)) != 0).sum(1).double().mean()
    assert mean == pytest.approx(8, rel=0.05)


def test_after_calibration_the_mean_on_the_calibration_activations_is_k_exactly():
    sae, x = make(dtype=torch.float32), activations(512, dtype=torch.float32)
    sae.calibrate(lambda: iter(x.reshape(4, 8, 16, D_IN)))  # sequences are tokens too
    assert (sae.encode(x) != 0).sum() == K * 512


def test_calibration_keeps_all_that_is_positive_where_that_is_fewer_than_k():
    sae, x = make(dtype=torch.float32), activations(64, dtype=torch.float32)
    with torch.no_grad():
        sae.encoder.bias -= 4
    positive = sae.pre_activations(x) > 0
    assert 0 < positive.sum() < K * 64
    sae.calibrate(lambda: [x])
    assert torch.equal(sae.encode(x) != 0, positive)


def test_calibration_without_activations_changes_nothing():
    sae = make()
    before = sae.threshold.clone()
    sae.calibrate(lambda: [])
    assert torch.equal(sae.threshold, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_no_finite_numbers_are_refused_and_leave_the_threshold(value: float):
    sae, x = make(), activations(64)
    before = sae.threshold.clone()
    x[5, 2] = value
    with pytest.raises(ValueError, match="the activations to calibrate on hold NaN or infinity in 1 of 64 rows"):
        sae.calibrate(lambda: iter([activations(64), x]))
    assert torch.equal(sae.threshold, before)


def test_in_use_a_token_is_encoded_alike_whatever_stands_beside_it():
    sae, x = make(), activations(20)
    torch.testing.assert_close(sae.encode(x)[7], sae.encode(x[7]))
    torch.testing.assert_close(sae.encode(x)[7], sae.encode(torch.cat([100 * x, x]))[27])


def test_in_use_it_is_the_threshold_that_decides():
    sae, x = make(), activations(50)
    pre = sae.pre_activations(x)
    torch.testing.assert_close(sae.encode(x), pre * (pre > sae.threshold))


def test_a_negative_threshold_still_lets_nothing_negative_through():
    sae, x = make(), activations(50)
    sae.threshold.fill_(-1.0)
    features = sae.encode_sparse(x)
    assert (features.values >= 0).all() and len(features.entry_values) == (sae.pre_activations(x) > 0).sum()


# -- the threshold through training -----------------------------------------------------------------------------------
def test_the_first_step_sets_the_threshold_and_a_constant_stays_what_it_is():
    """An average that starts from 0 without correction would stand at 1 % of it, and let far too much through."""
    sae = make()
    sae.threshold.zero_()
    for step in range(10):
        assert after(sae, 0.75, step).item() == pytest.approx(0.75)


def test_the_threshold_is_the_bias_corrected_exponential_average():
    sae, seen = make(), [1.0, 0.2, 0.6, 3.0, 0.1]
    weights = [0.99 ** (len(seen) - 1 - t) for t in range(len(seen))]
    expected = sum(w * s for w, s in zip(weights, seen, strict=True)) / sum(weights)
    sae.threshold.fill_(123.0)  # whatever was there before the first step is forgotten
    for step, kept in enumerate(seen):
        last = after(sae, kept, step)
    assert last.item() == pytest.approx(expected)


def test_ten_steps_of_training_leave_a_threshold_that_lets_about_k_through():
    sae = make(d_in=16, n_features=128, k=8)
    for step in range(10):
        now = state(step=step)
        sae.after_step(sae(activations(1024, 16, seed=step), state=now).statistics, now)
    mean = (sae.encode(activations(1024, 16, seed=99)) != 0).sum(1).double().mean()
    assert mean == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_the_smallest_value_kept_is_reported_by_either_path(path: str):
    out = make()(activations(100), state=state(path))
    values = out.features.to_dense()
    torch.testing.assert_close(out.statistics.smallest_kept, values[values > 0].min().float())


def test_a_step_that_kept_nothing_leaves_the_threshold():
    sae = make()
    before = sae.threshold.clone()
    assert torch.equal(after(sae, torch.inf, 5), before)


@pytest.mark.parametrize("k", [0, N_FEATURES + 1])
def test_k_must_lie_between_1_and_the_number_of_features(k: int):
    with pytest.raises(StrictDataclassError, match=f"k must be between 1 and n_features={N_FEATURES}, got {k}"):
        BatchTopKSAEConfig(d_in=D_IN, n_features=N_FEATURES, k=k)
