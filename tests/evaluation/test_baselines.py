"""The untrained SAE and PCA."""

import pytest
import torch

from hfsae import SAE
from hfsae.architectures import architectures
from hfsae.evaluation import PCA, untrained
from tests.evaluation.tiny import WIDTH, make_sae


@pytest.fixture
def activations() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(600, WIDTH, generator=generator) @ torch.randn(WIDTH, WIDTH, generator=generator) + 3


@pytest.mark.parametrize("name", sorted(architectures()))
def test_an_untrained_sae_has_the_same_shape_and_knows_only_scale_centre_and_gain(name, activations):
    sae_class = architectures()[name]
    config = sae_class.config_class(d_in=WIDTH, n_features=64)
    sae = SAE.from_config(config)
    fresh = untrained(sae, activations)
    assert type(fresh) is sae_class and fresh is not sae
    assert fresh.config.to_dict() | {"dtype": None} == config.to_dict() | {"dtype": None}
    torch.testing.assert_close(fresh.b_dec / fresh.input_scale, activations.mean(0), atol=1e-4, rtol=1e-4)
    # The least-squares gain is 1: no other length of the reconstruction would be closer.
    with torch.no_grad():
        written = fresh(activations).reconstruction - activations.mean(0)
        gain = (written * (activations - activations.mean(0))).sum() / written.square().sum()
    assert gain.item() == pytest.approx(1, abs=0.05)


def test_it_is_the_same_every_time_and_draws_from_a_generator_of_its_own(activations):
    sae = make_sae()
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first = untrained(sae, activations)
    assert torch.equal(torch.rand(2), expected)
    second = untrained(sae, activations)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_pca_is_the_projection_on_the_directions_of_greatest_variance(activations):
    pca = PCA(activations, 3)
    output = pca(activations[:50])
    centred = (activations - activations.mean(0)).double()
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    projection = directions[:3].T @ directions[:3]
    expected = (activations[:50].double() - activations.mean(0)) @ projection + activations.mean(0)
    torch.testing.assert_close(output.reconstruction.double(), expected, atol=1e-4, rtol=1e-4)
    assert output.features.shape == (50, 3) and pca.components == 3


def test_pca_with_all_components_loses_nothing(activations):
    torch.testing.assert_close(PCA(activations, WIDTH)(activations).reconstruction, activations, atol=1e-4, rtol=1e-4)
