import json
import math

import pytest
import torch

from hfsae.training.sparsity import SparsityCoefficient

TARGET = 32.0


class Plant:
    """A stand-in for an SAE in training: L0 follows λ as a power law, with inertia and noise.

    Args:
        exponent: How strongly λ presses: L0 = 64 λ^-exponent, once it has settled.
        inertia: The share of log L0 that stays from one step to the next.
        start: L0 at the first step.
    """

    def __init__(self, exponent: float, inertia: float, start: float):
        self._exponent, self._inertia = exponent, inertia
        self._log_l0 = math.log(start)
        self._noise = torch.Generator().manual_seed(0)

    def l0(self, coefficient: float) -> torch.Tensor:
        settled = math.log(64) - self._exponent * math.log(max(coefficient, 1e-3))
        self._log_l0 = self._inertia * self._log_l0 + (1 - self._inertia) * settled
        return torch.tensor(math.exp(self._log_l0)) * (1 + 0.05 * torch.randn((), generator=self._noise))


def steer(plant, total_steps, *, initial=1.0, target_l0: float | None = TARGET):
    """λ and L0 at every step of a run."""
    coefficient = SparsityCoefficient(
        initial, total_steps=total_steps, warmup_steps=total_steps // 20, target_l0=target_l0
    )
    lambdas, l0s = [], []
    for step in range(total_steps):
        lambdas.append(float(coefficient.at(step)))
        l0s.append(plant.l0(lambdas[-1]))
        coefficient.observe(l0s[-1], step)
    return lambdas, torch.stack(l0s)


@pytest.mark.parametrize("start", [4.0, 400.0])
@pytest.mark.parametrize("initial", [0.3, 3.0])
@pytest.mark.parametrize(("exponent", "inertia"), [(0.5, 0.9), (1.0, 0.5), (1.0, 0.9)])
def test_the_controller_brings_l0_within_a_tenth_of_the_target(exponent, inertia, initial, start):
    _, l0s = steer(Plant(exponent, inertia, start), 1000, initial=initial)
    assert l0s[-200:].mean().item() == pytest.approx(TARGET, rel=0.1)


def test_the_coefficient_moves_until_the_last_fifth_and_then_holds_still():
    lambdas, _ = steer(Plant(1.0, 0.9, 400.0), 1000)
    assert len(set(lambdas[-200:])) == 1
    assert all(now != before for before, now in zip(lambdas[50:799], lambdas[51:800], strict=True))


def test_the_coefficient_warms_up_before_the_controller_acts():
    lambdas, _ = steer(Plant(1.0, 0.9, 400.0), 200, initial=2.0)
    assert lambdas[:11] == pytest.approx([2 * (step + 1) / 11 for step in range(11)])


def test_without_a_target_the_coefficient_stays_once_it_is_warm():
    lambdas, _ = steer(Plant(1.0, 0.9, 400.0), 100, initial=2.0, target_l0=None)
    assert lambdas[5:] == pytest.approx([2.0] * 95)


def test_a_coefficient_of_zero_stays_zero():
    lambdas, _ = steer(Plant(1.0, 0.9, 400.0), 20, initial=0.0, target_l0=None)
    assert lambdas == [0.0] * 20


@pytest.mark.parametrize("stop", [0, 3, 70, 190])
def test_a_controller_goes_on_from_a_saved_state_bit_by_bit(stop):
    l0s = 10 + 50 * torch.rand(200, generator=torch.Generator().manual_seed(1))
    whole, before, after = (
        SparsityCoefficient(1.0, total_steps=200, warmup_steps=10, target_l0=TARGET) for _ in range(3)
    )
    for step, l0 in enumerate(l0s):
        whole.observe(l0, step)
        if step == stop:
            after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        (before if step < stop else after).observe(l0, step)
    assert after.state_dict() == whole.state_dict()
    assert after.at(199) == whole.at(199)
