import torch
from hypothesis import given
from hypothesis import strategies as st

from hfsae.functional import gated_magnitude


@given(st.integers(0, 6), st.integers(1, 5), st.booleans(), st.integers(0, 2**31))
def test_values_and_gradients_are_those_of_the_formula(n_tokens: int, n_features: int, each: bool, seed: int):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n_tokens, n_features), *[(n_tokens, n_features) if each else (n_features,)] * 3]
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    gate, gate_bias, scale, bias = leaves
    weight = torch.randn(n_tokens, n_features, generator=generator, dtype=torch.float64)
    expected = (gate > 0) * torch.relu(scale * (gate - gate_bias) + bias)
    wanted = torch.autograd.grad((expected * weight).sum(), leaves)
    values = gated_magnitude(gate, gate_bias, scale, bias)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(torch.autograd.grad((values * weight).sum(), leaves), wanted)
