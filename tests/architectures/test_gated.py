import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hfsae import GatedSAEConfig
from tests.architectures.variants import VARIANTS, activations, state


def test_the_gate_decides_and_the_magnitude_says_how_much():
    sae, x = VARIANTS["gated"].make(), activations(50)
    gate = sae.pre_activations(x)
    projection = gate - sae.encoder.bias
    magnitude = (sae.magnitude_log_scale.exp() * projection + sae.magnitude_bias).relu()
    torch.testing.assert_close(sae.encode(x), (gate > 0) * magnitude)


def test_a_feature_whose_magnitude_is_0_is_not_active_though_its_gate_is_open():
    sae, x = VARIANTS["gated"].make(), activations(50)
    with torch.no_grad():
        sae.magnitude_bias.fill_(-100.0)
    out = sae(x, state=state("sparse"))
    assert len(out.features.pattern.features) > 0 and out.statistics.l0 == 0
    assert out.features.values.shape == (50, 0)


def test_gate_and_magnitude_share_one_matrix():
    shapes = {name: tuple(p.shape) for name, p in VARIANTS["gated"].make().named_parameters()}
    assert [name for name, shape in shapes.items() if shape == (24, 6)] == ["W_dec", "encoder.weight"]


def test_a_fresh_one_is_a_relu_sae():
    """Magnitude and gate agree as long as r = 0 and both biases are the same."""
    sae, x = VARIANTS["gated"].make(), activations(50)
    with torch.no_grad():
        sae.magnitude_log_scale.zero_()
        sae.magnitude_bias.copy_(sae.encoder.bias)
    torch.testing.assert_close(sae.encode(x), sae.pre_activations(x).relu())


def test_the_gates_error_does_not_reach_the_decoder():
    """Features are 0 and their penalty is off: what moves rows or b_dec then could only come through the gate."""
    sae, x = VARIANTS["gated"].make(), activations(50)
    with torch.no_grad():
        sae.magnitude_bias.fill_(-100.0)
    sae(x, state=state(sparsity_coefficient=0.0)).loss.backward()
    assert not sae.W_dec.grad.any()
    assert sae.encoder.weight.grad.any()


def test_the_penalty_is_on_the_gate_and_leaves_magnitudes_alone():
    sae, x = VARIANTS["gated"].make(), activations(50)
    gradients = []
    for coefficient in (0.0, 10.0):
        sae.zero_grad()
        sae(x, state=state(sparsity_coefficient=coefficient)).loss.backward()
        gradients.append((sae.magnitude_log_scale.grad.clone(), sae.magnitude_bias.grad.clone()))
    torch.testing.assert_close(*gradients)


def test_it_is_not_aligned_since_its_magnitudes_have_a_scale_of_their_own():
    with pytest.raises(StrictDataclassError, match="which in gated has a scale of its own"):
        GatedSAEConfig(d_in=4, n_features=8, aligned=True)
