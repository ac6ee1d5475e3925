import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hfsae import SAE, StandardSAEConfig
from hfsae.architectures.standard import l1_coefficient_from_mean_squared
from tests.architectures.variants import D_IN, N_FEATURES, VARIANTS, activations, state


def test_every_positive_pre_activation_is_a_feature():
    sae, x = VARIANTS["standard"].make(), activations(20)
    torch.testing.assert_close(sae.encode(x), sae.pre_activations(x).relu())


@pytest.mark.parametrize("penalty, norm, unit", [("decoder_norm", 0.1, False), ("l1", 1.0, True)])
def test_rows_start_short_where_they_are_free_and_at_unit_norm_where_they_are_kept_there(penalty, norm, unit):
    sae = SAE.from_config(StandardSAEConfig(d_in=D_IN, n_features=N_FEATURES, penalty=penalty))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((N_FEATURES,), norm))
    torch.testing.assert_close(sae.encoder.weight.norm(dim=1), torch.ones(N_FEATURES))
    assert sae.unit_decoder_rows is unit


def test_the_decoder_norm_penalty_does_not_change_when_rows_grow_and_features_shrink():
    """The way round a plain L1 penalty that the weighting closes."""
    x = activations(30)
    penalties = {}
    for name in ("standard", "standard-l1"):
        sae = VARIANTS[name].make()
        before = sae(x, state=state()).losses["l1"]
        with torch.no_grad():
            sae.W_dec *= 10
            sae.encoder.weight /= 10
            sae.encoder.bias /= 10
        penalties[name] = (sae(x, state=state()).losses["l1"] / before).item()
    assert penalties == {"standard": pytest.approx(1.0), "standard-l1": pytest.approx(0.1)}


def test_the_converted_coefficient_of_a_loss_on_raw_means_gives_the_same_gradients():
    """`mean_d (x − x̂)² + l1 ‖f‖₁` on raw activations is this loss over d·s², f = z / s being its features."""
    sae, x, l1 = VARIANTS["standard-l1"].make(subtract_b_dec=False), activations(30), 0.01
    scale = sae.input_scale.item()
    out = sae(x)
    raw_loss = (out.reconstruction - x).square().mean(1).mean() + l1 * (sae.encode(x) / scale).sum(1).mean()
    coefficient = l1_coefficient_from_mean_squared(l1, D_IN, scale)
    loss = sae(x, state=state(sparsity_coefficient=coefficient)).loss
    torch.testing.assert_close(loss, raw_loss * D_IN * scale**2)


def test_an_unknown_penalty_is_refused_with_those_there_are():
    with pytest.raises(StrictDataclassError, match="decoder_norm"):
        StandardSAEConfig(d_in=D_IN, n_features=N_FEATURES, penalty="l2")
