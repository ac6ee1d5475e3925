import dataclasses
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from hfsae import SAE, JumpReLUSAEConfig
from hfsae.autoencoder.initialisation import initialise
from hfsae.autoencoder.outputs import Steering, StepState, StepStatistics
from tests.architectures.variants import BANDWIDTH, D_IN, N_FEATURES, TARGET_L0, VARIANTS, activations, state

NOTHING = StepStatistics(torch.zeros(N_FEATURES), torch.tensor(0.0), torch.tensor(1.0))


def make(name: str = "jumprelu", **options):
    return VARIANTS[name].make(**options)


def test_in_use_a_feature_is_its_pre_activation_above_its_own_threshold():
    sae, x = make(), activations(50)
    pre = sae.pre_activations(x)
    torch.testing.assert_close(sae.encode(x), pre * (pre > sae.threshold))
    assert sae.threshold.unique().numel() == N_FEATURES


def test_training_works_on_what_the_kernel_reaches_and_use_on_what_is_active():
    sae, x = make(), activations(50)
    pre = sae.pre_activations(x)
    out = sae(x, state=state("sparse"))
    assert len(out.features.pattern.features) == (pre > sae.threshold - BANDWIDTH / 2).sum()
    assert len(sae.encode_sparse(x).pattern.features) == (pre > sae.threshold).sum() == out.statistics.l0 * 50


@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_a_feature_just_below_its_threshold_moves_it(path: str):
    """The kernel must see the pre-activation: the jumped value there is 0, and a kernel on that is blind."""
    sae = SAE.from_config(JumpReLUSAEConfig(d_in=1, n_features=1, bandwidth=0.5))
    with torch.no_grad():
        sae.encoder.weight.fill_(1.0)
        sae.threshold.fill_(1.0)
    out = sae(torch.tensor([[0.9]]), state=StepState(path=path, sparsity_coefficient=2.0))
    assert out.statistics.l0 == 0
    out.loss.backward()
    # Turning the feature on would lower the error; λ/ε pulls the other way: 2 (x̂ − x) · W · (−θ/ε) − λ/ε.
    expected = 2 * (0 - 0.9) * sae.W_dec.item() * (-1.0 / 0.5) - 2.0 / 0.5
    assert sae.threshold.grad.item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["jumprelu", "jumprelu-quadratic", "jumprelu-frequency"])
def test_counting_features_sends_no_gradient_to_pre_activations(name: str):
    sae, x = make(name), activations(50)
    gradients = []
    for coefficient in (0.0, 10.0):
        sae.zero_grad()
        sae(x, state=state(sparsity_coefficient=coefficient)).loss.backward()
        gradients.append((sae.encoder.weight.grad.clone(), sae.threshold.grad.clone()))
    (weight, threshold), (same_weight, other_threshold) = gradients
    torch.testing.assert_close(same_weight, weight)
    assert not torch.allclose(other_threshold, threshold)


def test_thresholds_are_not_negative_after_a_step():
    sae = make()
    with torch.no_grad():
        sae.threshold[:3] = torch.tensor([-0.5, 0.0, 0.5])
    sae.after_step(NOTHING, state())
    assert sae.threshold[:3].tolist() == [0.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("l0", "wanted", "factor"),
    [
        (4.0, 8.0, math.exp(-3 * 0.04 * (math.log(2) - 0.03))),
        (0.0, 8.0, math.exp(-3 * 0.04 * (math.log(2) - 0.03))),  # no further off counts than half
        (7.8, 8.0, 1.0),  # the last 3 % are λ's
        (8.2, 8.0, 1.0),
        (16.0, 8.0, math.exp(0.04 * (math.log(2) - 0.03))),
        (800.0, 8.0, math.exp(0.04 * 0.97)),
        (16.0, 16.0, 1.0),  # on the way to 8
        (16.0, math.nan, 1.0),  # before the first step is over, nobody knows the way
        (16.0, None, 1.0),  # where λ is fixed, nobody says what is too few
    ],
)
def test_thresholds_move_while_l0_is_off_what_is_wanted(l0: float, wanted: float | None, factor: float):
    sae = make()
    with torch.no_grad():
        sae.threshold.copy_(torch.linspace(0.5, 2.0, len(sae.threshold)))
    before = sae.threshold.detach().clone()
    found = dataclasses.replace(NOTHING, l0=torch.tensor(l0), variance=torch.tensor(1.0))
    steering = None if wanted is None else Steering(torch.tensor(wanted, dtype=torch.float64), 0.04)
    sae.after_step(found, state(steering=steering))
    torch.testing.assert_close(sae.threshold.detach(), before * factor)


def test_thresholds_stay_where_a_step_had_no_tokens():
    sae = make()
    before = sae.threshold.detach().clone()
    nothing = dataclasses.replace(NOTHING, l0=torch.tensor(0.0), variance=torch.tensor(0.0))
    sae.after_step(nothing, state(steering=Steering(torch.tensor(8.0, dtype=torch.float64), 0.04)))
    assert torch.equal(sae.threshold, before)


# -- the start --------------------------------------------------------------------------------------------------------
def test_thresholds_start_where_initial_l0_features_a_token_are_active():
    torch.manual_seed(0)
    sae = SAE.from_config(JumpReLUSAEConfig(d_in=16, n_features=256, initial_l0=20))
    x = activations(2048, 16, dtype=torch.float32)
    initialise(sae, x)
    assert (sae.encode(x) != 0).sum(1).float().mean() == pytest.approx(20, rel=0.1)
    assert sae.threshold.unique().numel() == 1


def test_an_initial_l0_beyond_the_width_starts_at_0():
    sae = SAE.from_config(JumpReLUSAEConfig(d_in=4, n_features=8, initial_l0=256))
    initialise(sae, activations(64, 4, dtype=torch.float32))
    assert (sae.threshold == 0).all()


def test_a_given_initial_threshold_is_kept_through_initialise():
    sae = SAE.from_config(JumpReLUSAEConfig(d_in=4, n_features=8, initial_threshold=0.05))
    assert (sae.threshold == 0.05).all()
    initialise(sae, activations(64, 4, dtype=torch.float32))
    assert (sae.threshold == 0.05).all()


# -- the penalties ----------------------------------------------------------------------------------------------------
def test_each_penalty_has_a_default_coefficient():
    found = {s: make("jumprelu", sparsity=s).default_sparsity_coefficient for s in ("l0", "l0_quadratic", "tanh")}
    assert all(value > 0 for value in found.values()) and len(set(found.values())) == 3


def test_the_quadratic_penalty_says_that_it_needs_a_target():
    with pytest.raises(ValueError, match="target_l0"):
        make("jumprelu-quadratic")(activations(5), state=state(target_l0=None))


def test_the_quadratic_penalty_is_0_at_the_target_and_pulls_towards_it():
    sae, x = make("jumprelu-quadratic"), activations(50)
    active = sae(x, state=state()).statistics.l0.item()
    pulls = {}
    for target in (active / 2, active, 2 * active):
        sae.zero_grad()
        out = sae(x, state=state(target_l0=target, sparsity_coefficient=1e6))
        out.loss.backward()
        pulls[target] = sae.threshold.grad.sum().item()
        assert out.losses["sparsity"].item() == pytest.approx(1e6 * (active / target - 1) ** 2, rel=1e-5, abs=1e-3)
    # Too many active: thresholds must rise, so their gradient is negative.
    assert pulls[active / 2] < 0 < pulls[2 * active] and abs(pulls[active]) < 1e-3 * pulls[2 * active]


def test_frequent_features_feel_their_frequency_and_rare_ones_hardly():
    """Of 100 tokens each feature sees its own number: 0 is active on 50 of them, 1 on one."""
    sae = SAE.from_config(JumpReLUSAEConfig(d_in=2, n_features=2, frequency_scale=0.1, bandwidth=0.5))
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.eye(2))
        sae.threshold.fill_(1.0)
    x = torch.zeros(100, 2)
    x[:50, 0] = x[0, 1] = 1.1
    out = sae(x, state=StepState(sparsity_coefficient=2.0))
    assert out.losses["sparsity"].item() == pytest.approx(2 * (0.5 + 0.01 + (0.5**2 + 0.01**2) / 0.1))
    without = SAE.from_config(JumpReLUSAEConfig(d_in=2, n_features=2, bandwidth=0.5))
    without.load_state_dict(sae.state_dict())
    pulls = []
    for each in (sae, without):
        loss = each(x, state=StepState(sparsity_coefficient=2.0)).loss
        loss.backward()
        pulls.append(each.threshold.grad)
    # d/dθ of p is −1/ε times the share of tokens near the threshold, which are the active ones here.
    expected = 2.0 * 2 * torch.tensor([0.5, 0.01]) / 0.1 * -torch.tensor([0.5, 0.01]) / 0.5
    torch.testing.assert_close(pulls[0] - pulls[1], expected, rtol=1e-4, atol=1e-4)


PROCESSES = 2


def _quadratic_step(rank: int, folder: Path, name: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    sae = make(name)
    part = uneven_batch().chunk(PROCESSES)[rank]
    out = sae(part, state=state(world_size=PROCESSES))
    out.loss.backward()
    torch.save({"loss": out.losses["sparsity"], "grad": sae.threshold.grad}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def uneven_batch() -> Tensor:
    """The first half activates far more features than the second: its mean's square is not the squares' mean."""
    x = activations(40)
    x[20:] *= 0.1
    return x


@pytest.mark.parametrize("name", ["jumprelu-quadratic", "jumprelu-frequency", "jumprelu-quadratic-frequency"])
def test_two_processes_together_get_the_gradient_of_their_whole_batch(tmp_path: Path, name: str):
    """Each process squaring its own mean would punish how different they are as well."""
    sae = make(name)
    whole = sae(uneven_batch(), state=state())
    whole.loss.backward()
    context = multiprocessing.get_context("fork")  # the children have torch already
    children = [context.Process(target=_quadratic_step, args=(rank, tmp_path, name)) for rank in range(PROCESSES)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]
    torch.testing.assert_close(sum(part["loss"] for part in parts) / PROCESSES, whole.losses["sparsity"])
    torch.testing.assert_close(sum(part["grad"] for part in parts) / PROCESSES, sae.threshold.grad)
    assert TARGET_L0 != whole.statistics.l0


def test_the_pre_activation_loss_is_off_unless_asked_for_and_while_nothing_is_dead():
    dead = torch.ones(N_FEATURES, dtype=torch.bool)
    x = activations(5)
    assert "pre_act" not in make()(x, state=state(dead=dead, n_dead=N_FEATURES)).losses
    assert "pre_act" not in make(pre_act_coefficient=1.0)(x, state=state()).losses
    assert "pre_act" in make(pre_act_coefficient=1.0)(x, state=state(dead=dead, n_dead=N_FEATURES)).losses


@pytest.mark.parametrize(
    "options, message",
    [
        ({"bandwidth": 0.0}, "bandwidth must be positive, got 0.0"),
        ({"frequency_scale": 0}, "frequency_scale must be above 0, got 0"),
        ({"initial_threshold": -0.1}, "initial_threshold must be 0 or more, got -0.1"),
        ({"initial_l0": 0}, "initial_l0 must be at least 1, got 0"),
        ({"sparsity": "l1"}, "l0_quadratic"),
    ],
)
def test_impossible_settings_are_refused(options: dict, message: str):
    with pytest.raises(StrictDataclassError, match=message):
        JumpReLUSAEConfig(d_in=D_IN, n_features=N_FEATURES, **options)
