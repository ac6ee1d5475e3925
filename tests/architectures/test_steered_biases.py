import math

import pytest
import torch

from hfsae.autoencoder.outputs import Steering, StepStatistics
from tests.architectures.variants import N_FEATURES, VARIANTS, activations, state


@pytest.mark.parametrize("name", ["standard", "standard-l1", "gated", "standard_crosscoder"])
@pytest.mark.parametrize(
    ("l0", "wanted", "progress", "rise"),
    [
        (4.0, 8.0, 0.8, 12 * 0.06 * (math.log(2) - 0.03)),
        (0.0, 8.0, 0.8, 12 * 0.06 * (math.log(2) - 0.03)),  # no further off counts than half
        (7.0, 8.0, 0.9, 12 * 0.06 * (math.log(8 / 7) - 0.03)),
        (16.0, 8.0, 0.9, -12 * 0.06 * (math.log(2) - 0.03)),
        (80.0, 8.0, 0.9, -12 * 0.06 * (1 - 0.03)),  # no further off counts than e times
        (7.8, 8.0, 0.9, 0.0),  # the last 3 % are λ's
        (4.0, 8.0, 0.79, 0.0),  # and so is what comes before
        (16.0, 8.0, 0.79, 0.0),
        (4.0, math.nan, 0.9, 0.0),  # before the first step is over, nobody knows the way
        (4.0, None, 0.9, 0.0),
    ],
)
def test_pre_activations_move_where_l0_is_off_what_is_wanted(
    name: str, l0: float, wanted: float | None, progress: float, rise: float
):
    sae, x = VARIANTS[name].make(), activations(16)
    with torch.no_grad():
        before = sae.pre_activations_of_scaled(x)
        found = StepStatistics(torch.zeros(N_FEATURES), l0=torch.tensor(l0), variance=torch.tensor(1.0))
        steering = None if wanted is None else Steering(torch.tensor(wanted, dtype=torch.float64), 0.06)
        sae.after_step(found, state(steering=steering, progress=progress))
        torch.testing.assert_close(sae.pre_activations_of_scaled(x), before + rise, rtol=1e-6, atol=1e-6)


def test_biases_stay_where_a_step_had_no_tokens():
    sae = VARIANTS["gated"].make()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    nothing = StepStatistics(torch.zeros(N_FEATURES), l0=torch.tensor(0.0), variance=torch.tensor(0.0))
    sae.after_step(nothing, state(steering=Steering(torch.tensor(8.0, dtype=torch.float64), 0.06)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())
