"""Planted features of one source only and of both are found, and the norms of decoder rows tell which is which."""

import pytest
import torch
from torch import Tensor

from hfsae import SAE
from hfsae.architectures import config_class_of
from hfsae.autoencoder.initialisation import initialise
from tests.architectures.test_recovery import ACTIVE, BATCH, planted, train
from tests.quick import mostly_slow

WIDTHS = {"base": 24, "tuned": 16}
SHARED, BASE_ONLY, TUNED_ONLY = range(0, 44), range(44, 54), range(54, 64)
SETTINGS = {
    "crosscoder": ({"k": ACTIVE}, 0.0),
    "topk_crosscoder": ({"k": ACTIVE}, 0.0),
    "jumprelu_crosscoder": ({"initial_l0": 2 * ACTIVE}, 0.5),
    "standard_crosscoder": ({}, 1.5),
}


def directions(generator: torch.Generator) -> Tensor:
    """One for each planted feature, (64, 40): of unit length in each source that it is in, 0 in another."""
    parts = {
        name: torch.nn.functional.normalize(torch.randn(64, width, generator=generator), dim=1)
        for name, width in WIDTHS.items()
    }
    parts["tuned"][BASE_ONLY.start : BASE_ONLY.stop] = 0
    parts["base"][TUNED_ONLY.start : TUNED_ONLY.stop] = 0
    return torch.cat(list(parts.values()), 1)


@pytest.mark.parametrize("name", mostly_slow(SETTINGS, quick=["crosscoder"]))
def test_relative_norms_tell_planted_features_of_one_source_from_shared_ones(name: str):
    generator = torch.Generator().manual_seed(0)
    true = directions(generator)
    options, coefficient = SETTINGS[name]
    torch.manual_seed(1)
    sizes = {"source_names": list(WIDTHS), "source_widths": list(WIDTHS.values()), "n_features": 128}
    sae = SAE.from_config(config_class_of(name)(**sizes, **options))
    initialise(sae, planted(16 * BATCH, generator, true))
    train(sae, coefficient, generator, true)
    rows = torch.nn.functional.normalize(sae.W_dec.detach() / sae._scale_in, dim=1)
    cosines, best = (torch.nn.functional.normalize(true, dim=1) @ rows.T).max(1)
    norms = sae.source_norms.detach()
    of_tuned = (norms[:, 1] / norms.sum(1))[best]
    assert cosines.mean() > 0.9
    found = cosines > 0.8
    assert found[list(BASE_ONLY)].sum() >= 8 and found[list(TUNED_ONLY)].sum() >= 8
    said = {place: of_tuned[list(place)][found[list(place)]] for place in (SHARED, BASE_ONLY, TUNED_ONLY)}
    assert said[BASE_ONLY].max() < 0.25 and said[TUNED_ONLY].min() > 0.75
    assert ((said[SHARED] > 0.3) & (said[SHARED] < 0.7)).float().mean() > 0.95
