"""Features as vectors that read and write, against the SAE's own encoder and decoder and their derivatives."""

import pytest
import torch

from hfsae import (
    SAE,
    BatchTopKSAEConfig,
    GatedSAEConfig,
    JumpReLUSAEConfig,
    MatryoshkaSAEConfig,
    StandardSAEConfig,
    TopKSAEConfig,
)
from hfsae.circuits.feature_sources import FeatureSource
from hfsae.hooks import HookPoint

HERE = HookPoint("model.layers.0", "output")
CONFIGS = [
    (StandardSAEConfig, {}),
    (TopKSAEConfig, {"k": 4}),
    (BatchTopKSAEConfig, {"k": 4}),
    (MatryoshkaSAEConfig, {"k": 4, "prefix_sizes": [8, 24]}),
    (JumpReLUSAEConfig, {}),
    (GatedSAEConfig, {}),
]
TRANSFORMS = ["none", "center", "layer_norm", "constant_norm"]


def random_sae(config_class, **fields) -> SAE:
    torch.manual_seed(0)
    sae = SAE.from_config(config_class(d_in=8, n_features=24, **fields)).double().eval()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        sae.input_scale.fill_(0.6)
    return sae


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("config_class", "fields"), CONFIGS, ids=lambda one: getattr(one, "__name__", ""))
def test_what_a_feature_reads_and_writes(config_class, fields, transform: str):
    sae = random_sae(config_class, input_transform=transform, **fields)
    x = torch.randn(5, 8, dtype=torch.float64)
    keep = torch.tensor([False, True, True, True, True])
    found = FeatureSource("sae", sae, HERE, HERE, keep).active(x)
    expected = sae.encode(x)
    expected[0] = 0
    dense = torch.zeros_like(expected).index_put((found.positions, found.features), found.values)
    torch.testing.assert_close(dense, expected)
    assert len(found) > 3 and bool((found.positions.diff() >= 0).all())
    sums = (found.readers * x[found.positions]).sum(-1) + found.constants
    torch.testing.assert_close(sums, found.values)
    for i in range(len(found)):
        position, feature = int(found.positions[i]), int(found.features[i])
        one = torch.zeros_like(expected[position])
        one[feature] = found.values[i]
        own = sae.decode(one, x[position]) - sae.decode(torch.zeros_like(one), x[position])
        torch.testing.assert_close(found.written[HERE][i], own)


@pytest.mark.parametrize("transform", ["none", "center"])
@pytest.mark.parametrize(("config_class", "fields"), CONFIGS, ids=lambda one: getattr(one, "__name__", ""))
def test_a_reader_is_the_derivative_of_the_feature(config_class, fields, transform: str):
    """Where nothing is divided by: else the denominator is held, which a derivative would not."""
    sae = random_sae(config_class, input_transform=transform, **fields)
    x = torch.randn(4, 8, dtype=torch.float64)
    found = FeatureSource("sae", sae, HERE, HERE, torch.ones(4, dtype=torch.bool)).active(x)
    leaf = x.clone().requires_grad_()
    features = sae.encode(leaf)
    for i in range(len(found)):
        value = features[found.positions[i], found.features[i]]
        (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True)
        torch.testing.assert_close(found.readers[i], gradient[found.positions[i]])


def test_rows_that_are_rescaled_by_decoder_norms_read_and_write_as_the_sae_does():
    sae = random_sae(TopKSAEConfig, k=4, rescale_by_decoder_norm=True)
    x = torch.randn(3, 8, dtype=torch.float64)
    source = FeatureSource("sae", sae, HERE, HERE, torch.ones(3, dtype=torch.bool))
    found = source.active(x)
    torch.testing.assert_close((found.readers * x[found.positions]).sum(-1) + found.constants, found.values)
    rebuilt = source.constant(x).index_add(0, found.positions, found.written[HERE])
    torch.testing.assert_close(rebuilt, sae(x).reconstruction)
