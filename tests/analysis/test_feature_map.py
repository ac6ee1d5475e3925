"""The map of features against principal components by the whole decomposition, and groups that were put there."""

import sys

import pytest
import torch
import torch.nn.functional as F

from hfsae import SAE, TopKCrossLayerTranscoderSAEConfig, TopKSAEConfig
from hfsae.analysis import feature_map


def sae_with(rows: torch.Tensor) -> SAE:
    sae = SAE.from_config(TopKSAEConfig(d_in=rows.shape[1], n_features=len(rows), k=2)).eval()
    sae.W_dec.data.copy_(rows)
    return sae


def longhand(rows: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """Coordinates on the two leading components, by a singular value decomposition, and their shares."""
    unit = F.normalize(rows, dim=1)
    centred = unit - unit.mean(0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    return centred @ axes[:2].T, (sizes.square() / sizes.square().sum())[:2].tolist()


def assert_same_up_to_signs(places: torch.Tensor, expected: torch.Tensor) -> None:
    signs = (places * expected).sum(0).sign()
    torch.testing.assert_close(places, expected * signs, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_places_are_the_two_leading_principal_components():
    torch.manual_seed(0)
    rows = torch.randn(300, 20) * torch.tensor([4.0, 2.5, *[1.0] * 18])
    sae = sae_with(rows)
    state = torch.get_rng_state()
    found = feature_map(sae, torch.arange(300))
    assert torch.equal(torch.get_rng_state(), state)
    assert found is not None
    expected, shares = longhand(rows)
    assert_same_up_to_signs(found.places, expected)
    assert found.explained == pytest.approx(shares, rel=1e-3) and found.groups is not None
    again = feature_map(sae, torch.arange(300).flip(0))
    assert again is not None and again.groups is not None
    assert torch.equal(again.places, found.places) and torch.equal(again.groups, found.groups)


@torch.no_grad()
def test_groups_are_those_that_write_alike():
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(5, 64), dim=1)
    group = torch.arange(100) % 5
    found = feature_map(sae_with(centres[group] + 0.02 * torch.randn(100, 64)), torch.arange(0, 100))
    assert found is not None and found.groups is not None and len(found.groups.unique()) == 5
    for number in range(5):
        assert len(found.groups[group == number].unique()) == 1
    sizes = torch.bincount(found.groups)
    assert (sizes.diff() <= 0).all()


@torch.no_grad()
def test_only_the_features_asked_for_have_a_place():
    torch.manual_seed(0)
    rows = torch.randn(40, 8)
    found = feature_map(sae_with(rows), torch.tensor([7, 3, 30, 31]))
    assert found is not None and found.features.tolist() == [3, 7, 30, 31]
    assert_same_up_to_signs(found.places, longhand(rows[[3, 7, 30, 31]])[0])
    assert feature_map(sae_with(rows), torch.tensor([1, 2])) is None
    alike = feature_map(sae_with(torch.ones(5, 8)), torch.arange(5))
    assert alike is not None and alike.places.isfinite().all()
    assert alike.groups is not None and alike.groups.tolist() == [0] * 5


@torch.no_grad()
def test_rows_of_a_cross_layer_transcoder_are_those_of_all_layers_together():
    torch.manual_seed(0)
    layers, n, d = 3, 8, 4
    config = TopKCrossLayerTranscoderSAEConfig(
        source_names=["a", "b", "c"], source_widths=[d] * layers, d_out=layers * d, n_features=layers * n, k=2
    )
    sae = SAE.from_config(config)
    writes = torch.zeros(layers * n, layers * d)
    for source in range(layers):
        for target in range(source, layers):
            writes[source * n : source * n + n, target * d : target * d + d] = sae.rows_between(source, target)
    found = feature_map(sae, torch.arange(2, 23))
    assert found is not None
    expected, shares = longhand(writes[2:23])
    assert_same_up_to_signs(found.places, expected)
    assert found.explained == pytest.approx(shares, rel=1e-3)


@torch.no_grad()
def test_without_scikit_learn_the_map_has_places_and_no_groups(monkeypatch):
    torch.manual_seed(0)
    rows = torch.randn(40, 8)
    whole = feature_map(sae_with(rows), torch.arange(40))
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    found = feature_map(sae_with(rows), torch.arange(40))
    assert whole is not None and found is not None and found.groups is None
    assert torch.equal(found.places, whole.places)


@torch.no_grad()
def test_umap_puts_rows_that_are_alike_together():
    pytest.importorskip("umap")
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(4, 64), dim=1)
    group = torch.arange(120) % 4
    sae = sae_with(centres[group] + 0.05 * torch.randn(120, 64))
    found, again = (feature_map(sae, torch.arange(120), method="umap") for _ in range(2))
    assert found is not None and again is not None and found.explained is None
    assert torch.equal(found.places, again.places) and found.places.dtype == torch.float32
    middles = torch.stack([found.places[group == number].mean(0) for number in range(4)])
    assert torch.equal(torch.cdist(found.places, middles).argmin(1), group)
    three = feature_map(sae, torch.tensor([5, 2, 9]), method="umap")
    assert three is not None and three.features.tolist() == [2, 5, 9] and three.places.isfinite().all()


def test_a_map_that_cannot_be_made_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    sae = sae_with(torch.randn(5, 4))
    with pytest.raises(ImportError, match=r"a map by UMAP needs umap-learn: pip install 'hfsae\[umap\]'"):
        feature_map(sae, torch.arange(5), method="umap")
    with pytest.raises(ValueError, match="maps are made by pca or umap, and not by 'tsne'"):
        feature_map(sae, torch.arange(5), method="tsne")  # type: ignore[arg-type]
