"""Dead features are counted over a window of tokens."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfsae.functional.firing import FiringCounter, worked_on

N = 5

steps_of_firing = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(0, 3), min_size=N, max_size=N)), min_size=1, max_size=12
)


def count_all(counter, steps):
    for n_tokens, firing in steps:
        counter.count(torch.tensor(firing), n_tokens)
    return counter


@given(steps_of_firing, st.integers(1, 40))
def test_dead_is_what_has_not_fired_for_the_window_in_tokens(steps, window):
    counter = count_all(FiringCounter(N, window=window, sampling_steps=100), steps)
    for feature in range(N):
        silent = 0
        for n_tokens, firing in reversed(steps):
            if firing[feature]:
                break
            silent += n_tokens
        assert counter.tokens_since_fired[feature] == silent
        assert counter.dead[feature] == (silent >= window)


@given(steps_of_firing, st.integers(1, 5))
def test_density_is_counted_in_the_sampling_window_that_runs(steps, sampling_steps):
    counter = count_all(FiringCounter(N, window=10, sampling_steps=sampling_steps), steps)
    begin = (len(steps) - 1) // sampling_steps * sampling_steps
    tokens = sum(n_tokens for n_tokens, _ in steps[begin:])
    fired = torch.tensor([firing for _, firing in steps[begin:]]).sum(0)
    assert torch.allclose(counter.density, fired / tokens)


@given(steps_of_firing, steps_of_firing)
def test_a_counter_goes_on_from_a_saved_state(before, after):
    whole = count_all(FiringCounter(N, window=10, sampling_steps=4), before + after)
    resumed = FiringCounter(N, window=10, sampling_steps=4)
    state = count_all(FiringCounter(N, window=10, sampling_steps=4), before).state_dict()
    resumed.load_state_dict({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()})
    count_all(resumed, after)
    assert torch.equal(resumed.tokens_since_fired, whole.tokens_since_fired)
    assert torch.equal(resumed.density, whole.density)


def test_whole_numbers_of_a_counter_can_be_stored_as_json():
    state = FiringCounter(N, window=10, sampling_steps=4).state_dict()
    json.dumps({name: value for name, value in state.items() if not isinstance(value, torch.Tensor)})


def test_a_revived_feature_starts_its_clock_anew():
    counter = FiringCounter(N, window=10, sampling_steps=4)
    counter.count(torch.zeros(N, dtype=torch.int64), 10)
    counter.revive(torch.tensor([1, 3]))
    assert counter.dead.tolist() == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("n_dead", "on_cpu", "on_gpu"), [(0, 0, 0), (1, 16, 64), (16, 16, 64), (65, 80, 128), (995, 1000, 1000)]
)
def test_dead_features_are_worked_on_in_even_numbers_and_on_a_gpu_in_few_different_ones(n_dead, on_cpu, on_gpu):
    assert worked_on(n_dead, torch.device("cpu"), 1000) == on_cpu
    assert worked_on(n_dead, torch.device("cuda"), 1000) == on_gpu
