"""AbsTopK: features on both sides of 0, and the TopK SAE that computes the same."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hfsae import AbsTopKSAEConfig, TopKSAE
from tests.architectures.variants import D_IN, N_FEATURES, VARIANTS, activations, state

TRANSCODER = {"subtract_b_dec": False, "hook_point": "layers.3.mlp.input", "target_hook_point": "layers.3.mlp.output"}


def make(k: int = 3, **options):
    return VARIANTS["abs_topk"].make(k=k, **options)


@pytest.mark.parametrize("k", [1, 3, N_FEATURES])
def test_exactly_k_are_active_the_farthest_from_0_with_their_signs(k: int):
    sae, x = make(k), activations(200)
    pre, features = sae.pre_activations(x), sae.encode(x)
    farthest = torch.zeros_like(pre).scatter(1, pre.abs().topk(k).indices, 1.0)
    torch.testing.assert_close(features, pre * farthest)
    assert (features < 0).any() and (features > 0).any() and (features != 0).sum() == 200 * k


def test_the_strongest_of_its_features_are_those_farthest_from_0():
    features = make().encode_sparse(activations(30))
    values, indices = features.topk(2)
    dense = features.to_dense()
    assert torch.equal(indices, dense.abs().topk(2).indices)
    assert torch.equal(values, dense.gather(-1, indices)) and (values < 0).any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subtract_b_dec": False},
        {"rescale_by_decoder_norm": True},
        {"skip": True},
        {"input_transform": "center"},
        TRANSCODER,
    ],
    ids=["plain", "keeps b_dec", "rescaled", "skip", "center", "transcoder"],
)
def test_by_sign_computes_the_same_with_positive_features(options: dict):
    sae, x = make(**options), activations(50)
    pairs = sae.by_sign()
    assert type(pairs) is TopKSAE and pairs.config.n_features == 2 * N_FEATURES and pairs.config.k == sae.config.k
    features = sae.encode(x)
    torch.testing.assert_close(pairs.encode(x), torch.cat([features.relu(), (-features).relu()], -1))
    torch.testing.assert_close(pairs(x).reconstruction, sae(x).reconstruction)
    shared = (
        "hook_point",
        "target_hook_point",
        "subtract_b_dec",
        "rescale_by_decoder_norm",
        "skip",
        "input_transform",
    )
    assert all(getattr(pairs.config, name) == getattr(sae.config, name) for name in shared)
    with torch.no_grad():
        pairs.W_dec.zero_()
    assert sae.W_dec.any() and sae(x).reconstruction.shape == (50, D_IN)


@pytest.mark.parametrize("k", [0, N_FEATURES + 1])
def test_k_must_lie_between_1_and_the_number_of_features(k: int):
    with pytest.raises(StrictDataclassError, match=f"k must be between 1 and n_features=24, got {k}"):
        AbsTopKSAEConfig(d_in=6, n_features=24, k=k)


def test_with_k_keeps_the_farthest():
    sae, x = make(8), activations(20)
    pre = sae.pre_activations(x)
    assert torch.equal(
        sae.with_k(2).encode(x) != 0, torch.zeros_like(pre).scatter(1, pre.abs().topk(2).indices, 1.0).bool()
    )


def test_dead_features_learn_on_both_sides_of_0():
    """The one dead feature is below 0 on every token; a ReLU would leave it without a gradient."""
    sae, x = make(), activations(30)
    with torch.no_grad():
        sae.encoder.weight[5] = 0.0
        sae.encoder.bias[5] = -0.01
    dead = torch.arange(N_FEATURES) == 5
    sae(x, state=state(dead=dead, n_dead=1, auxk_alpha=1 / 32)).loss.backward()
    with_auxk = sae.W_dec.grad[5].clone()
    assert with_auxk.any()


def test_it_is_not_aligned_since_no_bias_lessens_negative_features():
    with pytest.raises(StrictDataclassError, match="does not lessen the negative features of abs_topk"):
        AbsTopKSAEConfig(d_in=4, n_features=8, k=2, aligned=True)
