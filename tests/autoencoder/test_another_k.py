"""`sae.with_k`: the same weights with another number of active features."""

from pathlib import Path

import pytest
import torch

from hfsae import SAE, TopKCrossLayerTranscoderSAEConfig
from tests.architectures.variants import HAVE_K, N_FEATURES, VARIANTS, activations

WITH_A_THRESHOLD = [name for name in HAVE_K if hasattr(VARIANTS[name].make(), "threshold")]


@pytest.mark.parametrize("name", sorted({*HAVE_K} - {*WITH_A_THRESHOLD, "abs_topk", "matching_pursuit"}))
def test_the_features_are_the_k_largest_and_the_weights_are_shared(name: str):
    sae, x = VARIANTS[name].make(k=8), activations(40)
    other = sae.with_k(2)
    assert type(other) is type(sae) and (sae.config.k, other.config.k) == (8, 2)
    pre = sae.pre_activations(x)
    expected = pre.relu() * torch.zeros_like(pre).scatter(-1, pre.topk(2).indices, 1.0)
    torch.testing.assert_close(other.encode(x), expected)
    with torch.no_grad():
        sae.W_dec.mul_(2.0)
    assert torch.equal(other.W_dec, sae.W_dec) and other.encoder is sae.encoder
    assert torch.equal(other.with_k(8).encode(x), sae.encode(x))


@pytest.mark.parametrize("name", WITH_A_THRESHOLD)
def test_a_threshold_is_found_from_activations_and_is_its_own(name: str):
    sae, x = VARIANTS[name].make(k=4), activations(400)
    before = sae.threshold.clone()
    other = sae.with_k(2, x)
    assert torch.equal(sae.threshold, before) and other.config.k == 2
    assert other.encode(x).count_nonzero() == 2 * len(x)
    with pytest.raises(ValueError, match=r"threshold that belongs to its k=4: give activations .* sae.with_k\(2, act"):
        sae.with_k(2)


@pytest.mark.parametrize("k", [0, -1, N_FEATURES + 1, 2.0, True])
def test_a_k_out_of_range_is_refused(k):
    with pytest.raises(ValueError, match=f"k must be a whole number from 1 to {N_FEATURES}, .* got {k}"):
        VARIANTS["topk"].make().with_k(k)


@pytest.mark.parametrize("name", ["standard", "jumprelu", "gated", "jumprelu_crosscoder"])
def test_architectures_without_k_refuse(name: str):
    with pytest.raises(ValueError, match=f"^{name} has no k: how many"):
        VARIANTS[name].make().with_k(2)


def test_what_has_no_other_k_and_what_needs_no_activations_refuse():
    with pytest.raises(ValueError, match="groupmax was trained with 4 groups"):
        VARIANTS["topk"].make(k=4, activation="groupmax").with_k(2)
    with pytest.raises(ValueError, match=r"topk has no threshold to find: use sae.with_k\(2\), without"):
        VARIANTS["topk"].make().with_k(2, activations(5))
    with pytest.raises(ValueError, match="there is no activation among those given, to find the threshold of k=2"):
        VARIANTS["batch_topk"].make().with_k(2, activations(0))
    with pytest.raises(TypeError, match="activations must be a floating point tensor, got list"):
        VARIANTS["batch_topk"].make().with_k(2, activations(5).tolist())


def test_each_layer_of_a_cross_layer_transcoder_has_k_features():
    sizes = {"source_names": ["a", "b"], "source_widths": [3, 3], "n_features": 20, "k": 4}
    sae = SAE.from_config(TopKCrossLayerTranscoderSAEConfig(**sizes)).double()
    with torch.no_grad():
        sae.encoder.bias += 10
    active = sae.with_k(2).encode(activations(9)) != 0
    assert (active.unflatten(1, (2, 10)).sum(-1) == 2).all()
    with pytest.raises(ValueError, match="from 1 to 10"):
        sae.with_k(11)


def test_it_is_saved_with_its_own_k_and_without_the_figures_of_another(tmp_path: Path):
    sae, x = VARIANTS["topk"].make(k=6, hierarchical=True, hierarchical_ks=[1, 2, 4, 6]), activations(9)
    sae.config.metrics = {"l0": 6.0}
    sae.with_k(3).save_pretrained(tmp_path)
    loaded = SAE.from_pretrained(tmp_path)
    assert (loaded.config.k, loaded.config.budgets, loaded.config.metrics) == (3, [1, 2, 3], None)
    assert torch.equal(loaded.encode(x), sae.with_k(3).encode(x)) and sae.config.metrics == {"l0": 6.0}
