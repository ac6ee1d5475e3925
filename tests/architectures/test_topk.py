import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hfsae import TopKCrossLayerTranscoderSAEConfig, TopKSAEConfig
from tests.architectures.variants import N_FEATURES, VARIANTS, activations, state


def make(k: int = 3, **options):
    return VARIANTS["topk"].make(k=k, **options)


@pytest.mark.parametrize("k", [1, 3, N_FEATURES])
def test_exactly_k_features_are_active_where_k_are_positive(k: int):
    sae = make(k)
    with torch.no_grad():
        sae.encoder.bias += 100
    active = (sae.encode(activations(50)) != 0).sum(1)
    assert (active == k).all()


@pytest.mark.parametrize("k", [1, 3, N_FEATURES])
def test_never_more_than_k_and_never_a_negative_one(k: int):
    features = make(k).encode(activations(200))
    assert (features != 0).sum(1).max() <= k
    assert features.min() >= 0
    assert make(N_FEATURES).encode(activations(200)).ne(0).sum(1).min() < N_FEATURES, "some were to be negative"


def test_the_active_features_are_the_largest():
    sae, x = make(), activations(50)
    pre = sae.pre_activations(x)
    largest = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(3).indices, True) & (pre > 0)
    assert torch.equal(sae.encode(x) != 0, largest)
    torch.testing.assert_close(sae.encode(x)[largest], pre[largest])


def test_a_token_is_encoded_alike_whatever_stands_beside_it():
    sae, x = make(), activations(20)
    torch.testing.assert_close(sae.encode(x)[7], sae.encode(x[7]))


def test_k_beyond_the_width_of_the_sae_for_the_wider_term_is_cut_to_it():
    sae = VARIANTS["multi-topk"].make(n_features=4, k=3)
    assert sae(activations(5), state=state()).losses["multi_topk"].isfinite()


def test_multi_topk_adds_an_eighth_of_the_error_with_4k_features():
    narrow, wide = VARIANTS["multi-topk"].make(k=2), make(8)
    x = activations(30)
    error = wide(x, state=state()).losses["mse"]
    torch.testing.assert_close(narrow(x, state=state()).losses["multi_topk"], error / 8)


@pytest.mark.parametrize("k", [0, -1, 25])
def test_k_must_lie_between_1_and_the_number_of_features(k: int):
    with pytest.raises(StrictDataclassError, match=f"k must be between 1 and n_features=24, got {k}"):
        TopKSAEConfig(d_in=6, n_features=24, k=k)


def test_it_is_trained_with_auxk_on_unit_rows_and_without_a_penalty():
    sae = make()
    assert sae.default_revival == "repoint" and sae.unit_decoder_rows and sae.default_sparsity_coefficient is None


def test_groups_have_to_be_of_one_size():
    assert make(4, activation="groupmax").config.activation == "groupmax"
    with pytest.raises(StrictDataclassError, match="groups of one size, got k=5 for 24 features"):
        TopKSAEConfig(d_in=6, n_features=24, k=5, activation="groupmax")


def test_hierarchical_is_the_mean_of_the_errors_that_each_k_has():
    sae, x = make(8, hierarchical=True), activations(50)
    assert sae.config.budgets == [1, 2, 3, 4, 5, 6, 7, 8]
    out = sae(x, state=state())
    errors = [sae.with_k(k)(x, state=state()).statistics.squared_error for k in sae.config.budgets]
    torch.testing.assert_close(out.losses["mse"], torch.stack([error.double() for error in errors]).mean())
    torch.testing.assert_close(out.statistics.squared_error, errors[-1])
    assert [*sae.parts()] == [f"strongest {k}" for k in range(1, 8)] and sae.parts()["strongest 3"].config.k == 3


@pytest.mark.parametrize(
    "options, why",
    [
        ({"hierarchical": True, "hierarchical_ks": [2, 4]}, r"must rise to k=3, got \[2, 4\]"),
        ({"hierarchical": True, "hierarchical_ks": [2, 2, 3]}, "must rise to k=3"),
        ({"hierarchical": True, "hierarchical_ks": [0, 3]}, "must rise to k=3"),
        ({"hierarchical_ks": [1, 3]}, "count with hierarchical=True alone"),
        ({"hierarchical": True, "activation": "groupmax"}, "hierarchical needs a token's largest features"),
    ],
)
def test_budgets_that_cannot_be_are_refused(options: dict, why: str):
    with pytest.raises(StrictDataclassError, match=why):
        TopKSAEConfig(d_in=6, n_features=24, k=3, **options)


def test_layers_take_no_hierarchical():
    with pytest.raises(StrictDataclassError, match="takes no hierarchical"):
        TopKCrossLayerTranscoderSAEConfig(source_names=["a"], source_widths=[6], n_features=24, k=3, hierarchical=True)
