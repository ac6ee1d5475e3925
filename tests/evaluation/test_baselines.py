"""The untrained SAE and PCA."""

import pytest
import torch

from hfsae import SAE
from hfsae.architectures import architectures
from hfsae.evaluation import PCA, untrained
from tests.architectures.variants import CROSS_LAYER, sources
from tests.evaluation.tiny import WIDTH, make_sae


@pytest.fixture
def activations() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(600, WIDTH, generator=generator) @ torch.randn(WIDTH, WIDTH, generator=generator) + 3


@pytest.mark.parametrize("name", sorted(set(architectures()) - {*CROSS_LAYER}))
def test_an_untrained_sae_knows_only_scale_centre_and_gain_and_has_as_many_active_features(name, activations):
    sae = SAE.from_config(architectures()[name].config_class(d_in=WIDTH, n_features=64, **sources(name, WIDTH)))
    fresh = untrained(sae, activations, k=5)
    torch.testing.assert_close(fresh.b_dec / fresh._scale_in, activations.mean(0), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        output = fresh(activations)
    assert output.features.shape == (600, 64)
    assert output.features.tokens_firing().sum() == 5 * 600
    # The least-squares gain is 1: no other length of what it writes would be closer.
    written, centred = output.reconstruction - activations.mean(0), activations - activations.mean(0)
    assert ((written * centred).sum() / written.square().sum()).item() == pytest.approx(1, abs=1e-4)


def test_an_untrained_sae_sees_activations_as_the_trained_one_does(activations):
    sae = make_sae(input_transform="layer_norm")
    fresh = untrained(sae, activations, k=5)
    assert fresh.config.input_transform == "layer_norm"
    with torch.no_grad():
        torch.testing.assert_close(
            fresh(7 * activations).reconstruction, 7 * fresh(activations).reconstruction, rtol=1e-3, atol=1e-3
        )


def test_it_is_the_same_every_time_and_draws_from_a_generator_of_its_own(activations):
    sae = make_sae()
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first = untrained(sae, activations, k=5)
    assert torch.equal(torch.rand(2), expected)
    second = untrained(sae, activations, k=5)
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
