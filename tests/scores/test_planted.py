import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from hfsae import SAE, TopKSAEConfig
from hfsae.scores import PlantedDictionary, find_planted


def sample(planted: PlantedDictionary, n: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    return planted.sample(n, torch.Generator().manual_seed(5))


def oracle(planted: PlantedDictionary, n: int | None = None) -> SAE:
    """An SAE whose features are the true ones, turned around; of orthogonal directions its encoder is its decoder."""
    size, d_in = planted.directions.shape
    sae = SAE.from_config(TopKSAEConfig(d_in=d_in, n_features=n or size, k=n or size, scale_inputs=False))
    with torch.no_grad():
        order = torch.arange(size).flip(0)[: n or size]
        sae.W_dec.copy_(planted.directions[order])
        sae.encoder.weight.copy_(planted.directions[order])
        sae.encoder.bias.fill_(-0.2)
        sae.b_dec.zero_()
    return sae


def orthogonal(**options) -> PlantedDictionary:
    planted = PlantedDictionary.plant(32, 32, active=3, noise=0.0, **options)
    directions, _ = torch.linalg.qr(torch.randn(32, 32))
    return PlantedDictionary(directions, planted.rates, planted.parents, planted.groups, planted.correlation, 0.0)


def test_the_true_dictionary_in_another_order_scores_1():
    planted = orthogonal()
    found = find_planted(oracle(planted), planted, n_tokens=4000, n_draws=50)
    assert found.mean_max_cosine.value == pytest.approx(1) and found.mcc.value == pytest.approx(1)
    assert found.f1.value > 0.99  # some values are below the bias
    assert found.l0 == pytest.approx(float((sample(planted)[1] > 0).sum(1).float().mean()), rel=0.05)


def test_half_of_the_dictionary_scores_half():
    planted = orthogonal()
    found = find_planted(oracle(planted, 16), planted, n_tokens=4000, n_draws=50)
    assert found.mcc.value == pytest.approx(0.5, abs=1e-5) and found.f1.value == pytest.approx(0.5, abs=0.01)
    assert found.mean_max_cosine.value == pytest.approx(0.5, abs=0.01)
    assert found.mcc.low < 0.5 < found.mcc.high


@pytest.mark.parametrize("seed", [0, 11])
def test_a_random_sae_scores_as_random_directions_do_of_the_same_seed_too(seed):
    planted = PlantedDictionary.plant(64, 128, seed=0)
    torch.manual_seed(seed)
    found = find_planted(SAE.from_config(TopKSAEConfig(d_in=64, n_features=128, k=8)), planted, n_tokens=4000)
    other = torch.from_numpy(np.random.default_rng(7).standard_normal((128, 64))).float()
    largest = (planted.directions @ torch.nn.functional.normalize(other, dim=1).T).amax(1).mean()
    assert found.mean_max_cosine.value == pytest.approx(float(largest), abs=0.03)
    assert found.mcc.value < found.mean_max_cosine.value and found.f1.value < 0.3


def test_figures_are_those_of_brute_force_and_scikit_learn():
    planted = PlantedDictionary.plant(6, 4, active=1, children=0, seed=3)
    torch.manual_seed(2)
    sae = SAE.from_config(TopKSAEConfig(d_in=6, n_features=5, k=2))
    cosines = planted.directions @ torch.nn.functional.normalize(sae.feature_directions.detach(), dim=1).T
    ways = itertools.permutations(range(5), 4)
    best = max(ways, key=lambda way: sum(float(cosines[row, column]) for row, column in enumerate(way)))
    activations, values = planted.sample(3000, torch.Generator().manual_seed(1))
    fires = sae.encode(activations) > 0
    f1 = [f1_score(values[:, row] > 0, fires[:, column]) for row, column in enumerate(best)]
    found = find_planted(sae, planted, n_tokens=3000, n_draws=50)
    assert found.mcc.value == pytest.approx(np.mean([float(cosines[row, column]) for row, column in enumerate(best)]))
    assert found.f1.value == pytest.approx(np.mean(f1)) and found.l0 == pytest.approx(
        float(fires.sum(1).float().mean())
    )


def test_features_fire_as_often_as_they_should_and_children_with_their_parents_alone():
    planted = PlantedDictionary.plant(16, 64, active=6)
    fires = sample(planted, 40_000)[1] > 0
    assert float(fires.sum(1).float().mean()) == pytest.approx(6, rel=0.15)
    children = (planted.parents >= 0).nonzero().flatten()
    assert len(children) == 16 and (planted.parents[planted.parents[children]] == -1).all()
    assert not (fires[:, children] & ~fires[:, planted.parents[children]]).any() and fires[:, children].any()
    roots = planted.parents < 0
    assert fires[:, roots].float().mean(0).numpy() == pytest.approx(planted.rates[roots].numpy(), abs=0.02)


def test_groups_are_correlated_and_others_are_not():
    planted = PlantedDictionary.plant(16, 16, active=4, children=0, correlation=0.6, group_size=8)
    fires = (sample(planted, 40_000)[1] > 0).double()
    correlations = torch.corrcoef(fires.T)
    assert float(correlations[:8, :8].fill_diagonal_(1).min()) > 0.15
    assert float(correlations[:8, 8:].abs().max()) < 0.03


def test_noise_is_what_it_is_called():
    planted = PlantedDictionary.plant(16, 32, noise=0.5)
    activations, values = sample(planted)
    assert float((activations - values @ planted.directions).std()) == pytest.approx(0.5, rel=0.02)


def test_what_cannot_be_planted_is_refused():
    with pytest.raises(ValueError, match="at most a quarter of the features active"):
        PlantedDictionary.plant(8, 16, active=5)
    with pytest.raises(ValueError, match="a correlation from 0 to 1"):
        PlantedDictionary.plant(correlation=2)
    planted = PlantedDictionary.plant(16, 32)
    with pytest.raises(ValueError, match="width 16: expected an SAE of that width"):
        find_planted(SAE.from_config(TopKSAEConfig(d_in=8, n_features=16, k=2)), planted)
