import pytest
import torch
from torch.nn import functional as F

from hfsae.autoencoder.input_transform import taken_apart


@pytest.mark.parametrize("transform", ["none", "center", "layer_norm", "constant_norm"])
def test_what_is_taken_out_is_put_back(transform: str):
    x = torch.randn(3, 2, 64, dtype=torch.float64) * 5 + 2
    made, mean, spread = taken_apart(x, transform)
    torch.testing.assert_close(made * spread + mean, x, rtol=1e-4, atol=1e-4)


def test_each_transform_is_its_formula():
    x = torch.randn(3, 64, dtype=torch.float64) * 5 + 2
    assert torch.equal(taken_apart(x, "none")[0], x)
    torch.testing.assert_close(taken_apart(x, "center")[0].sum(-1), torch.zeros(3, dtype=x.dtype))
    # Of n - 1 numbers, where torch's own norm divides by n.
    torch.testing.assert_close(
        taken_apart(x, "layer_norm")[0], F.layer_norm(x, (64,)) * (63 / 64) ** 0.5, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(taken_apart(x, "constant_norm")[0], F.normalize(x, dim=-1) * 8)
