import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfsae.training.schedule import (
    REFERENCE_RATE,
    REFERENCE_STEPS,
    auto_learning_rate,
    learning_rate_at,
    warmup_factor,
)

KINDS = ("constant", "linear", "cosine")


def course(total_steps, peak=1.0, **options):
    return [learning_rate_at(step, total_steps, peak, **options) for step in range(total_steps)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_warm_up_begins_where_asked_and_ends_at_the_peak(kind):
    rates = course(20, kind=kind, warmup_steps=4, start=0.2, end=0.05)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_warm_up_without_a_start_wastes_no_step():
    assert course(20, warmup_steps=4)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_without_a_warm_up_the_first_step_is_at_the_peak():
    assert course(10, start=0.1)[0] == 1.0


def test_constant_stays_at_the_peak():
    assert course(10, kind="constant", warmup_steps=2, end=0.1)[2:] == [1.0] * 8


def test_linear_falls_in_equal_steps_to_its_end():
    assert course(6, kind="linear", warmup_steps=1, end=0.2)[1:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_falls_slowly_then_fast_then_slowly_to_its_end():
    rates = course(6, kind="cosine", warmup_steps=1, end=0.2)
    assert rates[1:] == pytest.approx([1.0, 0.8828427, 0.6, 0.3171573, 0.2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_final_decay_goes_linearly_towards_zero(kind):
    plain, decayed = course(20, kind=kind, end=0.1), course(20, kind=kind, end=0.1, decay_steps=4)
    assert decayed[:16] == plain[:16]
    shares = [late / rate for late, rate in zip(decayed[16:], plain[16:], strict=True)]
    assert shares == pytest.approx([0.8, 0.6, 0.4, 0.2])  # the step after the last would be at 0


@given(
    st.integers(1, 60),
    st.sampled_from(KINDS),
    st.integers(0, 60),
    st.integers(0, 60),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_rate_never_leaves_the_range_between_zero_and_the_peak(total, kind, warmup, decay, start, end):
    rates = course(total, kind=kind, warmup_steps=min(warmup, total - 1), decay_steps=decay, start=start, end=end)
    assert all(0 <= rate <= 1 + 1e-12 for rate in rates)


def test_auto_is_the_reference_rate_at_the_reference_and_less_for_wider_and_longer():
    def rate(n_features, steps):
        return auto_learning_rate(n_features, steps, d_in=64)

    assert rate(2**14, REFERENCE_STEPS) == pytest.approx(REFERENCE_RATE)
    assert rate(2**16, REFERENCE_STEPS) == pytest.approx(REFERENCE_RATE / 2)
    assert rate(2**14, 10 * REFERENCE_STEPS) < REFERENCE_RATE
    assert rate(2**8, 10) == 0.02 > rate(2**10, 30)


def test_auto_turns_no_row_of_unit_norm_further_than_a_quarter_in_a_step():
    for d_in in (256, 576, 4096):
        furthest = max(auto_learning_rate(n, s, d_in=d_in) for n in (64, 1024, 2**17) for s in (1, 32, 1000))
        row = torch.zeros(d_in, requires_grad=True)
        optimiser = torch.optim.Adam([row], lr=furthest)
        row.grad = torch.randn(d_in, generator=torch.Generator().manual_seed(0))
        optimiser.step()
        assert row.norm().item() == pytest.approx(0.25, rel=1e-3)
    # Long runs and wide SAEs never come near.
    assert auto_learning_rate(12_288, 1000, d_in=768) == auto_learning_rate(12_288, 1000, d_in=64)


def test_a_penalty_rises_in_equal_steps():
    assert [warmup_factor(step, 3) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0
