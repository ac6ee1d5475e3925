import json
import math

import pytest
import torch

from hfsae.training.schedule import SparsityCoefficient, missed_target

TARGET = 32.0


class Plant:
    """A stand-in for an SAE in training: L0 follows λ as a power law, with inertia and noise.

    Args:
        exponent: How strongly λ presses: L0 = 64 λ^-exponent, once it has settled.
        inertia: The share of log L0 that stays from one step to the next.
        start: L0 at the first step.
        noise: Relative spread of the L0 of batches.
    """

    def __init__(self, *, exponent: float = 1.0, inertia: float = 0.9, start: float = 400.0, noise: float = 0.0):
        self._exponent, self._inertia, self._noise = exponent, inertia, noise
        self._log_l0 = math.log(start)
        self._generator = torch.Generator().manual_seed(0)
        self.right_coefficient = (64 / TARGET) ** (1 / exponent)

    def l0(self, coefficient: float) -> torch.Tensor:
        settled = math.log(64) - self._exponent * math.log(max(coefficient, 1e-3))
        self._log_l0 = self._inertia * self._log_l0 + (1 - self._inertia) * settled
        return torch.tensor(math.exp(self._log_l0)) * (1 + self._noise * torch.randn((), generator=self._generator))


def steer(plant, total_steps, *, initial, target_l0: float | None = TARGET):
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
@pytest.mark.parametrize("share_of_the_right_coefficient", [0.3, 1.0, 3.0])
@pytest.mark.parametrize(("exponent", "inertia"), [(0.5, 0.9), (1.0, 0.5), (1.0, 0.9)])
def test_the_controller_brings_l0_within_a_tenth_of_the_target(
    exponent, inertia, share_of_the_right_coefficient, start
):
    plant = Plant(exponent=exponent, inertia=inertia, start=start, noise=0.05)
    _, l0s = steer(plant, 1000, initial=share_of_the_right_coefficient * plant.right_coefficient)
    assert l0s[-200:].mean().item() == pytest.approx(TARGET, rel=0.1)


def test_a_coefficient_ten_times_too_strong_is_mended_within_a_short_run():
    plant = Plant()
    _, l0s = steer(plant, 250, initial=10 * plant.right_coefficient)
    assert l0s[-50:].mean().item() == pytest.approx(TARGET, rel=0.1)


def test_of_a_coefficient_thirty_times_too_weak_little_is_left_after_a_short_run():
    plant = Plant(start=200.0)
    _, l0s = steer(plant, 250, initial=plant.right_coefficient / 30)
    assert l0s[-50:].mean().item() == pytest.approx(TARGET, rel=0.2)  # 114 where λ rises no faster far above


def rises(times_the_path: float, total_steps: int) -> list[float]:
    """By how much log λ moves at each of the first steps, where L0 stays so many times above the path."""
    coefficient = SparsityCoefficient(1.0, total_steps=total_steps, warmup_steps=0, target_l0=TARGET)
    logs, path = [0.0], 0.75 * total_steps
    for step in range(10):
        # From twice the target, which the first step has, by the square of what is left of three quarters of the run.
        l0 = TARGET * 2 ** ((1 - step / path) ** 2) * (times_the_path if step else 1)
        coefficient.observe(torch.tensor(l0), step)
        logs.append(math.log(float(coefficient.at(step))))
    return [after - before for before, after in zip(logs, logs[1:], strict=False)]


@pytest.mark.parametrize("total_steps", [100, 250])
def test_lambda_rises_the_faster_the_further_above_the_path_l0_is(total_steps):
    usual = 0.1 * 25 / total_steps
    assert rises(1.45, total_steps)[-1] == pytest.approx(usual, rel=1e-4)  # as at any distance up to 1.5
    for times in (2.0, 4.0, 8.0):
        # What is off is averaged with a share of a fifth for each new step; the first of the ten was on the path.
        off = math.log(times) * (1 - 0.8**9)
        expected = usual * (1 + 1.5 * (off - math.log(1.5)))
        assert rises(times, total_steps)[-1] == pytest.approx(expected, rel=1e-4)


def test_the_path_leads_from_the_first_l0_to_the_target():
    coefficient = SparsityCoefficient(1.0, total_steps=100, warmup_steps=0, target_l0=TARGET)
    assert coefficient.steering_at(0).l0.isnan()  # the first step has not been seen
    coefficient.observe(torch.tensor(4 * TARGET), 0)
    coefficient.observe(torch.tensor(TARGET), 1)
    path = [coefficient.steering_at(step).l0.item() for step in (0, 15, 30, 75, 99)]
    # In log from 4 times the target to it, by the square of what is left of three quarters of the run.
    assert path == pytest.approx([TARGET * 4 ** (left**2) for left in (1, 0.8, 0.6, 0, 0)])
    below = SparsityCoefficient(1.0, total_steps=100, warmup_steps=0, target_l0=TARGET)
    below.observe(torch.tensor(TARGET / 4), 0)
    assert below.steering_at(1).l0.item() == pytest.approx(TARGET)
    assert SparsityCoefficient(1.0, total_steps=100, warmup_steps=0).steering_at(5) is None


@pytest.mark.parametrize(("total_steps", "share"), [(8, 0.06), (100, 0.06), (400, 0.015), (40_000, 1.5e-4)])
def test_in_a_long_run_l0_is_left_to_lambda(total_steps, share):
    coefficient = SparsityCoefficient(1.0, total_steps=total_steps, warmup_steps=0, target_l0=TARGET)
    assert coefficient.steering_at(0).share == pytest.approx(share)


def test_at_the_target_the_coefficient_holds_still_for_the_last_fifth():
    lambdas, _ = steer(Plant(), 1000, initial=4.0)
    assert len(set(lambdas[-200:])) == 1 < len(set(lambdas[-400:-200]))


def test_away_from_the_target_the_coefficient_is_moved_to_the_end():
    lambdas, _ = steer(Plant(), 100, initial=1000.0)
    assert all(now < before for before, now in zip(lambdas[-20:], lambdas[-19:], strict=False))


def test_without_a_target_the_coefficient_warms_up_and_stays():
    lambdas, _ = steer(Plant(), 100, initial=2.0, target_l0=None)
    assert lambdas == pytest.approx([2 * min(1.0, (step + 1) / 6) for step in range(100)])


def test_a_coefficient_of_zero_stays_zero():
    lambdas, _ = steer(Plant(), 20, initial=0.0, target_l0=None)
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


def test_a_target_that_is_missed_is_told_with_the_tokens_it_needs():
    said = missed_target(34.9, 8.0, steps=20, tokens_per_step=4096)
    assert said is not None and "L0 is 34.9, but 8 was asked for" in said and "409,600 tokens (100 steps)" in said
    assert "2,000 steps" in str(missed_target(10.0, 8.0, steps=1000, tokens_per_step=1))
    for l0, target in ((8.7, 8.0), (7.3, 8.0), (None, 8.0), (50.0, None)):
        assert missed_target(l0, target, 20, 4096) is None
