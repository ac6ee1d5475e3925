import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfsae.training.optimisation import (
    build_optimiser,
    clip,
    constrain_gradients,
    remove_parallel_gradient,
    renormalise,
    restore_rows,
)
from tests.training.tiny import ARCHITECTURES, BATCH, make_learner, make_sae, sparse_rows


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 5))
def test_only_the_gradient_along_a_row_is_removed(n, d, seed):
    torch.manual_seed(seed)
    rows = torch.nn.Parameter(torch.nn.functional.normalize(torch.randn(n, d, dtype=torch.float64), dim=1))
    gradient = torch.randn(n, d, dtype=torch.float64)
    rows.grad = gradient.clone()
    remove_parallel_gradient(rows)
    assert (rows.grad * rows).sum(1).abs().max() < 1e-12
    removed = gradient - rows.grad
    assert torch.allclose(removed, (removed * rows).sum(1, keepdim=True) * rows)


def test_rows_without_a_gradient_are_passed_over():
    remove_parallel_gradient(torch.nn.Parameter(torch.eye(3)))


def test_renormalising_keeps_directions_and_survives_a_row_of_zeros():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    renormalise(rows)
    assert torch.allclose(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_have_unit_norm_after_every_step_exactly_where_they_must(architecture):
    learner = make_learner(make_sae(architecture), learning_rate=0.1)
    before = learner.sae.W_dec.detach().clone()
    for step in range(3):
        learner.step([sparse_rows(32, seed=step)], step)
    norms = learner.sae.W_dec.norm(dim=1)
    assert not torch.equal(learner.sae.W_dec, before)
    assert torch.allclose(norms, torch.ones(48), atol=1e-6) == (architecture != "standard")


CAN_BE_ALIGNED = tuple(name for name in ARCHITECTURES if name not in ("gated", "abs_topk", "matching_pursuit"))


@pytest.mark.parametrize("architecture", [*CAN_BE_ALIGNED, "crosscoder"])
@pytest.mark.parametrize("revival", ["auxk", "resample"])
def test_aligned_rows_have_the_product_1_after_every_step_while_features_come_back(architecture, revival):
    sources = {"source_names": ["a", "b"], "source_widths": [6, 10]} if architecture == "crosscoder" else {}
    sae = make_sae(architecture, aligned=True, **sources)
    with torch.no_grad():
        sae.encoder.bias[::2] -= 100
    options = {"dead_feature_window": 40, "resample_every": 2 * BATCH, "training_tokens": 20 * BATCH}
    learner = make_learner(sae, learning_rate=0.1, revival=revival, **options)
    before = sae.encoder.weight.detach().clone()
    for step in range(8):
        learner.step([sparse_rows(BATCH, seed=step)], step)
        products = (sae.encoder.weight * sae.W_dec).sum(1)
        torch.testing.assert_close(products, torch.ones(48), rtol=0, atol=1e-5)
    moved = (sae.encoder.weight - before).norm(dim=1) > 0.01
    assert moved[1::2].any() and (revival == "auxk" or moved[::2].any())


def test_what_training_would_undo_does_not_reach_the_encoders_gradient():
    sae = make_sae("topk", aligned=True)
    sae.encoder.weight.grad = torch.randn(48, 16, generator=torch.Generator().manual_seed(5))
    constrain_gradients(sae)
    assert (sae.encoder.weight.grad * sae.W_dec).sum(1).abs().max() < 1e-5 < sae.encoder.weight.grad.abs().max()
    free = make_sae("topk")
    free.encoder.weight.grad = torch.ones(48, 16)
    constrain_gradients(free)
    restore_rows(free)
    assert (free.encoder.weight.grad == 1).all() and not torch.allclose(
        (free.encoder.weight * free.W_dec).sum(1), torch.ones(48)
    )


def clipped(max_norm: float) -> torch.Tensor:
    """What Adam took for the gradient of a first step in which every parameter's gradient is 1, in one row."""
    sae = make_sae("topk")
    optimiser = build_optimiser(sae, lr=0.1, betas=(0.5, 0.99), eps=1e-8)
    for parameter in sae.parameters():
        parameter.grad = torch.ones_like(parameter)
    clip(sae, optimiser, max_norm)
    optimiser.step()
    return torch.cat([2 * optimiser.state[parameter]["exp_avg"].flatten() for parameter in sae.parameters()])


def test_a_long_gradient_is_clipped_over_all_parameters_of_the_sae():
    gradient = clipped(1.0)
    assert gradient.norm().item() == pytest.approx(1.0, rel=1e-4)
    assert torch.equal(gradient, gradient[0].expand_as(gradient))


@pytest.mark.parametrize("max_norm", [0.0, 1e6])
def test_a_short_gradient_and_one_that_is_not_to_be_clipped_stay(max_norm):
    assert torch.equal(clipped(max_norm), torch.ones_like(clipped(max_norm)))


def test_a_gradient_that_is_not_a_number_is_not_taken_for_a_short_one():
    sae = make_sae("topk")
    optimiser = build_optimiser(sae, lr=0.1, betas=(0.5, 0.99), eps=1e-8)
    for parameter in sae.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    clip(sae, optimiser, 1.0)
    optimiser.step()
    assert all(parameter.isnan().all() for parameter in sae.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_optimiser_has_every_parameter_once_and_thresholds_in_a_group_of_their_own(architecture):
    sae = make_sae(architecture)
    optimiser = build_optimiser(sae, lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    grouped = [{id(parameter) for parameter in group["params"]} for group in optimiser.param_groups]
    assert set.union(*grouped) == {id(parameter) for parameter in sae.parameters()}
    assert sum(map(len, grouped)) == len(list(sae.parameters()))
    thresholds = [id(parameter) for name, parameter in sae.named_parameters() if name == "threshold"]
    assert grouped[1:] == ([set(thresholds)] if architecture == "jumprelu" else [])
