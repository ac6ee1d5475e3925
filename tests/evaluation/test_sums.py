"""Sums of batches: adding them up gives what one pass over everything gives, however the tokens were split."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hfsae.evaluation import add, as_columns, finalise, reconstruction_sums, reduce_sums
from hfsae.functional import SparseFeatures
from tests.evaluation import longhand


def table(n_tokens: int, seed: int, offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Activations with a common offset, reconstructions of them, and the sparse features in between, dense."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_tokens, 5, generator=generator) + offset
    x_hat = x + 0.3 * torch.randn(n_tokens, 5, generator=generator)
    z = torch.relu(torch.randn(n_tokens, 9, generator=generator) - 1)
    z[:, 4] = 0
    return x, x_hat, z


def sums_of(x: Tensor, x_hat: Tensor, z: Tensor, reference: Tensor) -> dict[str, Tensor]:
    return reconstruction_sums(x, x_hat, SparseFeatures.from_dense(z), reference)


@settings(max_examples=50)
@given(
    n_tokens=st.integers(2, 40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    seed=st.integers(0, 100),
    offset=st.sampled_from([0.0, 10.0, 1e4]),
    reference_error=st.sampled_from([0.0, 3.0]),
)
def test_any_split_into_batches_gives_the_pooled_metrics(n_tokens, cuts, seed, offset, reference_error):
    x, x_hat, z = table(n_tokens, seed, offset)
    reference = torch.full((5,), offset + reference_error)
    edges = sorted({0, n_tokens, *(min(cut, n_tokens) for cut in cuts)})
    pooled: dict[str, Tensor] = {}
    for start, end in zip(edges, edges[1:], strict=False):
        pooled = add(pooled, sums_of(x[start:end], x_hat[start:end], z[start:end], reference))
    metrics = finalise(pooled)
    for name, value in longhand.reconstruction(x.numpy(), x_hat.numpy(), z.numpy()).items():
        assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_mean_much_larger_than_the_spread_costs_no_accuracy():
    x, x_hat, z = table(4000, seed=0, offset=1e5)
    expected = longhand.reconstruction(x.numpy(), x_hat.numpy(), z.numpy())
    measured = finalise(sums_of(x, x_hat, z, torch.full((5,), 1e5)))
    assert measured["explained_variance"] == pytest.approx(expected["explained_variance"], abs=1e-6)
    # Sums of squares about 0, in the precision of the activations, lose it all.
    about_zero = (x**2).sum() - x.sum(0).square().sum() / len(x)
    assert abs(about_zero / (x - x.mean(0)).double().square().sum() - 1) > 0.5


def test_activations_in_half_precision_are_summed_in_float64():
    x, x_hat, z = table(300, seed=1, offset=20.0)
    x, x_hat = x.bfloat16(), x_hat.bfloat16()
    sums = sums_of(x, x_hat, z, torch.zeros(5))
    assert all(value.dtype == torch.float64 for value in sums.values())
    expected = longhand.reconstruction(x.float().numpy(), x_hat.float().numpy(), z.numpy())
    assert finalise(sums)["mse"] == pytest.approx(expected["mse"], rel=1e-6)


def test_a_reconstruction_of_zero_has_cosine_zero():
    x = torch.ones(3, 5)
    metrics = finalise(sums_of(x, torch.zeros(3, 5), torch.zeros(3, 9), torch.zeros(5)))
    assert metrics["cosine"] == metrics["l2_ratio"] == metrics["l0"] == 0


def test_sums_that_only_one_side_has_are_kept():
    total = add({"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0), "b": torch.tensor(3.0)})
    assert total == {"a": 3, "b": 3}


def test_sums_of_saes_of_different_width_are_not_added():
    with pytest.raises(ValueError, match=r"tokens_firing has the shapes \(2,\) and \(3,\)"):
        add({"tokens_firing": torch.zeros(2)}, {"tokens_firing": torch.zeros(3)})


def test_one_process_keeps_its_sums_as_they_are():
    sums = {"a": torch.tensor(1.0)}
    assert reduce_sums(sums) is sums


def test_columns_hold_one_row_of_plain_numbers():
    columns = as_columns({"a": torch.tensor(1.5), "v": torch.tensor([1.0, 2.0])}, ("v",))
    assert columns == {"v": [[1.0, 2.0]]}
    assert np.array(as_columns({"a": torch.tensor(1.5)})["a"]).shape == (1,)
