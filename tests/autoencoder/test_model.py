import pytest
import torch
from torch import Tensor

from hfsae import SAE, TopKSAEConfig
from hfsae.functional import SparseFeatures
from tests.architectures.variants import (
    ARCHITECTURES,
    CROSSCODERS,
    D_IN,
    N_FEATURES,
    OF_ONE_SOURCE,
    TIED,
    VARIANTS,
    activations,
    state,
)

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
of_one_source = pytest.mark.parametrize("name", OF_ONE_SOURCE)
two_sets_of_rows = pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in TIED])
every_variant = pytest.mark.parametrize("name", VARIANTS)
variant_of_one_source = pytest.mark.parametrize(
    "name", [name for name in VARIANTS if VARIANTS[name].architecture not in (*CROSSCODERS, *TIED)]
)


def topk(**options) -> SAE:
    return VARIANTS["topk"].make(**options)


def of_one_error(name: str) -> dict:
    """Options with which a loss is about one reconstruction alone: without nested SAEs."""
    if name == "hierarchical-topk":
        return {"hierarchical_ks": [VARIANTS[name].make().config.k]}
    return {"prefix_sizes": [N_FEATURES]} if name.startswith("matryoshka") else {}


def transcoder(name: str = "topk", **options) -> SAE:
    places = {"hook_point": "layers.3.mlp.input", "target_hook_point": "layers.3.mlp.output"}
    return VARIANTS[name].make(subtract_b_dec=False, **places, **options)


# -- names people know ------------------------------------------------------------------------------------------------
def test_the_encoder_in_the_orientation_of_the_field_is_a_view():
    sae = topk()
    assert sae.W_enc.shape == (D_IN, N_FEATURES) and sae.W_dec.shape == (N_FEATURES, D_IN)
    assert sae.W_enc.data_ptr() == sae.encoder.weight.data_ptr() and sae.b_enc is sae.encoder.bias


def test_a_feature_adds_its_direction_to_the_language_models_own_activations():
    """Bare rows of W_dec would be wrong by the scale."""
    sae = topk()
    features = torch.zeros(1, N_FEATURES, dtype=torch.float64)
    base = sae.decode(features)
    features[0, 5] = 1.0
    torch.testing.assert_close(sae.decode(features) - base, sae.feature_directions[5:6])
    assert not torch.allclose(sae.feature_directions, sae.W_dec)


# -- encode and decode ------------------------------------------------------------------------------------------------
@every_architecture
def test_decode_takes_dense_and_sparse_features_and_gives_what_forward_gives(name: str):
    sae, x = VARIANTS[name].make(), activations(10)
    reconstruction, features = sae(x)
    torch.testing.assert_close(features, sae.encode(x))
    torch.testing.assert_close(sae.decode(sae.encode(x)), reconstruction)
    torch.testing.assert_close(sae.decode(sae.encode_sparse(x)), reconstruction)
    torch.testing.assert_close(sae.decode(SparseFeatures.from_dense(sae.encode(x))), reconstruction)
    expected = (sae.encode(x) @ sae.W_dec + sae.b_dec) / sae._scale_in
    torch.testing.assert_close(reconstruction, expected)


@every_architecture
def test_some_features_alone_are_the_columns_of_all_of_them(name: str):
    sae, x, some = VARIANTS[name].make(), activations(10), [7, 0, 7, 23]
    torch.testing.assert_close(sae.encode(x, features=some), sae.encode(x)[:, some])
    torch.testing.assert_close(sae.encode(x, features=torch.tensor(some)), sae.encode(x)[:, some])
    torch.testing.assert_close(sae.pre_activations(x, features=some), sae.pre_activations(x)[:, some])
    mask = torch.zeros(N_FEATURES, dtype=torch.bool).index_fill(0, torch.tensor(some), True)
    torch.testing.assert_close(sae.encode(x, features=mask), sae.encode(x)[:, mask])
    torch.testing.assert_close(sae.encode(x, features=[-1]), sae.encode(x)[:, -1:])


@every_architecture
def test_some_features_alone_are_sparse_too(name: str):
    sae, x = VARIANTS[name].make(), activations(10).unflatten(0, (2, 5))
    is_wanted = torch.zeros(N_FEATURES, dtype=torch.bool).index_fill(0, torch.tensor([0, 7, 23]), True)
    for some in ([7, 0, 7, 23], torch.tensor([0, 7, 23]), is_wanted):
        found = sae.encode_sparse(x, features=some)
        torch.testing.assert_close(found.to_dense(), sae.encode(x) * is_wanted)
    for encode in (sae.encode, sae.encode_sparse):
        with pytest.raises(IndexError):
            encode(x, features=[N_FEATURES])


@every_variant
def test_some_features_alone_have_the_gradients_that_they_have_among_all(name: str):
    gradients = []
    for alone in (False, True):
        sae, x = VARIANTS[name].make(), activations(9).requires_grad_()
        some = [3, 1]
        features = sae.encode(x, features=some) if alone else sae.encode(x)[:, some]
        features.square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in sae.parameters())])
    for ours, expected in zip(*gradients, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(*(zero if g is None else g for g in (ours, expected)), check_dtype=False)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("topk", *TIED)])
def test_of_features_that_stand_alone_no_others_are_computed(name: str):
    sae, x = VARIANTS[name].make(), activations(9)
    sae.encoder.weight.data[4:] = torch.nan  # would show wherever a product with them entered
    assert sae.encode(x, features=[0, 2]).isfinite().all()


def test_pre_activations_are_those_of_the_formula():
    sae, x = topk(), activations(10)
    expected = (sae._scale_in * x - sae.b_dec) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(sae.pre_activations(x), expected)


@of_one_source
@pytest.mark.parametrize("transform", ["none", "center", "layer_norm"])
def test_nothing_is_remembered_between_encode_and_decode(name: str, transform: str):
    sae, x = VARIANTS[name].make(input_transform=transform), activations(10)
    expected, features = sae(x).reconstruction, sae.encode(x)
    sae.encode(100 * activations(10, seed=8) + 50)
    torch.testing.assert_close(sae.decode(features, x), expected)


@every_architecture
def test_training_and_evaluation_mode_encode_alike(name: str):
    sae, x = VARIANTS[name].make(), activations(10)
    torch.testing.assert_close(sae.train().encode(x), sae.eval().encode(x))


def test_without_a_state_there_is_no_loss():
    out = topk()(activations(3))
    assert out.loss is None and out.losses is None and out.statistics is None


@pytest.mark.parametrize("bad", [torch.zeros(3, D_IN, dtype=torch.long), [[0.0] * D_IN], None])
def test_activations_must_be_floating_point_tensors(bad):
    with pytest.raises(TypeError, match="activations must be a floating point tensor, got"):
        topk().encode(bad)


def test_activations_of_another_width_are_told_where_this_sae_belongs():
    sae = topk(hook_point="transformer.h.8.output", base_model="org/lm")
    message = r"shape \(..., d_in=6\), got \(3, 5\). This SAE reads transformer.h.8.output of org/lm"
    with pytest.raises(ValueError, match=message):
        sae(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="an unnamed hook point of an unnamed model"):
        topk().encode(torch.zeros(5))


# -- the training step ------------------------------------------------------------------------------------------------
@every_variant
def test_a_step_reports_its_terms_its_features_and_how_often_each_fired(name: str):
    sae, x = VARIANTS[name].make(), activations(40)
    out = sae(x, state=state())
    dense = out.features.to_dense()
    torch.testing.assert_close(out.loss.detach(), sum(out.losses.values()))
    assert not any(term.requires_grad for term in out.losses.values()) and not dense.requires_grad
    torch.testing.assert_close(out.statistics.tokens_firing, (dense != 0).sum(0))
    torch.testing.assert_close(out.statistics.l0, (dense != 0).sum(1).float().mean())
    torch.testing.assert_close(out.reconstruction, sae.decode(dense, x).detach())
    error = out.losses["mse"] if out.statistics.squared_error is None else out.statistics.squared_error
    torch.testing.assert_close(error, ((out.reconstruction - x) * sae._scale_in).square().sum(1).mean())


@variant_of_one_source
@pytest.mark.parametrize("transform", ["center", "layer_norm", "constant_norm"])
def test_a_step_too_reconstructs_in_the_language_models_own_space(name: str, transform: str):
    sae, x = VARIANTS[name].make(input_transform=transform), activations(40) + 5
    out = sae(x, state=state())
    torch.testing.assert_close(out.reconstruction, sae.decode(out.features, x).detach())


@pytest.mark.parametrize(
    "name, options",
    [
        (name, options)
        for name in VARIANTS
        for options in ({}, {"rescale_by_decoder_norm": True}, {"skip": True})
        if (name not in CROSSCODERS or "skip" not in options)
        and (not options or VARIANTS[name].architecture not in TIED)
    ],
)
def test_the_reconstruction_in_scaled_space_is_that_of_a_step(name: str, options: dict):
    sae, x = VARIANTS[name].make(**options), activations(40)
    expected = sae(x, state=state()).reconstruction * sae._scale_in
    torch.testing.assert_close(sae.scaled_reconstruction(sae.scaled(x)), expected)
    assert not sae.scaled_reconstruction(sae.scaled(x)).requires_grad


# -- general fields ---------------------------------------------------------------------------------------------------
@two_sets_of_rows
def test_without_subtracting_b_dec_the_encoder_does_not_see_it(name: str):
    sae, x = VARIANTS[name].make(subtract_b_dec=False), activations(10)
    before, reconstruction = sae.encode(x), sae(x).reconstruction
    with torch.no_grad():
        sae.b_dec += 3
    torch.testing.assert_close(sae.encode(x), before)
    torch.testing.assert_close(sae(x).reconstruction, reconstruction + 3 / sae._scale_in.double())
    torch.testing.assert_close(sae.pre_activations(x), sae.scaled(x) @ sae.W_enc + sae.b_enc)


@two_sets_of_rows
@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_without_subtracting_b_dec_its_gradient_comes_from_the_decoder_alone(name: str, path: str):
    sae, x = VARIANTS[name].make(subtract_b_dec=False, **of_one_error(name)), activations(10)
    out = sae(x, state=state(path))
    out.loss.backward()
    residual = out.reconstruction * sae._scale_in - sae.scaled(x)
    torch.testing.assert_close(sae.b_dec.grad, 2 * residual.mean(0))


@of_one_source
def test_centred_sae_ignores_the_mean_over_dimensions_and_puts_it_back(name: str):
    sae, x = VARIANTS[name].make(input_transform="center"), activations(10)
    shift = torch.linspace(-5, 5, 10, dtype=torch.float64)[:, None]
    torch.testing.assert_close(sae.encode(x + shift), sae.encode(x))
    torch.testing.assert_close(sae(x + shift).reconstruction, sae(x).reconstruction + shift)
    without = sae.decode(sae.encode(x))
    torch.testing.assert_close(sae.decode(sae.encode(x), x), without + x.mean(1, keepdim=True))


@of_one_source
def test_layer_normed_sae_ignores_mean_and_spread_and_puts_both_back(name: str):
    sae, x = VARIANTS[name].make(input_transform="layer_norm"), activations(10)
    other = 1000 * x + 3
    tolerance = {"rtol": 1e-4, "atol": 1e-4}  # 1e-5 is added to the spread
    torch.testing.assert_close(sae.encode(other), sae.encode(x), **tolerance)
    torch.testing.assert_close((sae(other).reconstruction - 3) / 1000, sae(x).reconstruction, **tolerance)
    mean, spread = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    torch.testing.assert_close(sae.scaled(x), (x - mean) / (spread + 1e-5) * sae._scale_in)
    written = (sae.encode(x) @ sae.W_dec + sae.b_dec) / sae._scale_in
    torch.testing.assert_close(sae(x).reconstruction, written * spread + mean)


@of_one_source
def test_an_sae_of_constant_norm_ignores_lengths_and_puts_them_back(name: str):
    sae, x = VARIANTS[name].make(input_transform="constant_norm"), activations(10)
    torch.testing.assert_close(sae.encode(7 * x), sae.encode(x))
    torch.testing.assert_close(sae(7 * x).reconstruction, 7 * sae(x).reconstruction)
    length = x.norm(dim=1, keepdim=True) / sae.config.d_in**0.5
    torch.testing.assert_close(sae.scaled(x), x / length * sae._scale_in)
    written = (sae.encode(x) @ sae.W_dec + sae.b_dec) / sae._scale_in
    torch.testing.assert_close(sae(x).reconstruction, written * length)
    assert sae(torch.zeros(1, sae.config.d_in)).reconstruction.count_nonzero() == 0


@pytest.mark.parametrize(
    "options, why",
    [
        ({"skip": True}, "skip=True"),
        ({"input_transform": "layer_norm"}, "layer_norm"),
        ({"input_transform": "constant_norm"}, "constant_norm"),
    ],
)
def test_decode_says_when_it_needs_the_activations(options: dict, why: str):
    sae, x = topk(**options), activations(3)
    with pytest.raises(ValueError, match=f"{why}.*sae.decode\\(features, activations\\)"):
        sae.decode(sae.encode(x))


@two_sets_of_rows
def test_rescaling_selects_and_reports_at_the_decoders_norm_and_writes_along_unit_rows(name: str):
    sae, x = VARIANTS[name].make(rescale_by_decoder_norm=True), activations(10)
    norm = sae.W_dec.norm(dim=1)
    plain = (sae.scaled(x) - sae.b_dec) @ sae.W_enc + sae.b_enc
    torch.testing.assert_close(sae.pre_activations(x), plain * norm)
    torch.testing.assert_close(sae.decoder_rows, sae.W_dec / norm[:, None])
    written = sae.encode(x) @ (sae.W_dec / norm[:, None])
    torch.testing.assert_close(sae(x).reconstruction, (written + sae.b_dec) / sae._scale_in)


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].architecture not in TIED])
@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_rescaling_is_the_same_sae_to_training_as_the_one_it_folds_into(name: str, path: str):
    """Every term of the loss must see the rescaled features and the rows that are written, auxk and pre_act too."""
    options = {"pre_act_coefficient": 0.1} if name.startswith("jumprelu") else {}
    sae, x = VARIANTS[name].make(rescale_by_decoder_norm=True, **options), activations(40)
    sae.input_scale.fill_(1.0)
    dead = torch.arange(N_FEATURES) % 5 == 0
    step = state(path, dead=dead, n_dead=int(dead.sum()), auxk_alpha=1 / 32)
    before = sae(x, state=step).losses
    folded = sae.fold_input_scale()
    assert not folded.config.rescale_by_decoder_norm
    torch.testing.assert_close(folded(x, state=step).losses, before)


@of_one_source
def test_a_skip_connection_starts_at_0_and_is_added_to_the_reconstruction(name: str):
    fresh = SAE.from_config(VARIANTS[name].make(skip=True).config)
    assert not fresh.W_skip.any()
    sae, x = VARIANTS[name].make(skip=True, **of_one_error(name)), activations(10)
    with torch.no_grad():
        sae.W_skip.normal_(generator=torch.Generator().manual_seed(0))
    written = sae.encode(x) @ sae.W_dec + sae.b_dec + sae.scaled(x) @ sae.W_skip.T
    torch.testing.assert_close(sae(x).reconstruction, written / sae._scale_in)
    out = sae(x, state=state())
    out.loss.backward()
    residual = out.reconstruction * sae._scale_in - sae.scaled(x)
    torch.testing.assert_close(sae.W_skip.grad, 2 * residual.T @ sae.scaled(x) / 10)


def test_every_reconstruction_in_a_loss_has_the_skip_connection():
    """With one that passes everything on, features and b_dec at 0, there is no error left in any term."""
    for name in ("multi-topk", "gated"):
        sae, x = VARIANTS[name].make(skip=True), activations(10)
        with torch.no_grad():
            sae.W_skip.copy_(torch.eye(D_IN))
            sae.W_dec.zero_()
            sae.b_dec.zero_()
        losses = sae(x, state=state(sparsity_coefficient=0.0)).losses
        assert len(losses) > 1 and all(abs(term) < 1e-12 for term in losses.values())


# -- transcoders ------------------------------------------------------------------------------------------------------
@of_one_source
def test_a_transcoder_reads_at_one_scale_and_writes_at_another_in_another_size(name: str):
    sae, x = transcoder(name, d_out=4), activations(10)
    assert sae.W_dec.shape == (N_FEATURES, 4) and sae.b_dec.shape == (4,)
    assert sae.input_scale != sae.output_scale
    written = sae.encode(x) @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(sae(x).reconstruction, written / sae.output_scale)
    torch.testing.assert_close(sae.feature_directions, sae.W_dec / sae.output_scale)
    torch.testing.assert_close(sae(x.reshape(2, 5, D_IN)).reconstruction, sae(x).reconstruction.reshape(2, 5, 4))


@variant_of_one_source
@pytest.mark.parametrize("path", ["dense", "sparse"])
def test_a_transcoder_is_trained_towards_its_target_at_the_targets_scale(name: str, path: str):
    sae, x = transcoder(name, d_out=4, skip=True, **of_one_error(name)), activations(12)
    y = activations(12, 4, seed=2)
    out = sae(x.reshape(3, 4, D_IN), y.reshape(3, 4, 4), state(path))
    error = (out.reconstruction.reshape(12, 4) - y) * sae.output_scale
    torch.testing.assert_close(out.losses["mse"], error.square().sum(1).mean())
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in sae.parameters())


@pytest.mark.parametrize(
    "target, message",
    [
        (None, "this SAE writes at layers.3.mlp.output: pass that activation as `target`"),
        (torch.zeros(12, 5), r"target must have shape \(12, 4\), one row for each activation, got \(12, 5\)"),
        (torch.zeros(6, 4), r"target must have shape \(12, 4\)"),
    ],
)
def test_a_transcoder_says_what_target_it_needs(target: Tensor | None, message: str):
    with pytest.raises(ValueError, match=message):
        transcoder(d_out=4)(activations(12), target, state())


# -- precision --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_sae_is_scaled_by_the_float32_scale_and_not_by_a_rounded_one(dtype: torch.dtype):
    sae = SAE.from_config(TopKSAEConfig(d_in=256, n_features=8, k=2)).to(dtype)
    sae.input_scale.fill_(1.2345678)
    x = activations(4, 256, dtype=dtype)
    exact = (x.float() * sae._scale_in).to(dtype)
    assert torch.equal(sae.scaled(x), exact)
    assert not torch.equal(x * sae.input_scale.to(dtype), exact), "the test could not fail"


def test_float64_stays_float64_down_to_the_loss():
    out = topk()(activations(3), state=state())
    assert out.loss.dtype == out.reconstruction.dtype == torch.float64


@every_architecture
def test_tensors_are_found_by_their_stored_names(name: str):
    sae = VARIANTS[name].make()
    for stored, tensor in sae.state_dict().items():
        assert sae.get_tensor(stored).data_ptr() == tensor.data_ptr()


@torch.no_grad()
def test_features_that_are_not_of_this_sae_are_not_decoded():
    sae, wider = (SAE.from_config(TopKSAEConfig(d_in=8, n_features=n, k=4)) for n in (32, 64))
    x = torch.randn(2, 3, 8)
    with pytest.raises(ValueError, match=r"must have the shape \(..., 32\), got \(2, 3, 64\)"):
        sae.decode(wider.encode(x))  # 2 x 3 x 64 numbers are 12 rows of 32, too
    with pytest.raises(ValueError, match=r"must have the shape \(..., 64\), got \(2, 3, 32\)"):
        wider.decode(sae.encode_sparse(x))
    with pytest.raises(ValueError, match=r"must have the shape \(..., 32\), got \(2, 16, 2\)"):
        sae.decode(sae.encode(torch.randn(2, 16, 8), [0, 1]))  # two features alone
    with pytest.raises(TypeError, match="got list"):
        sae.decode([0.0] * 32)
    with pytest.raises(ValueError, match="the same tokens"):
        sae.decode(sae.encode(x), x[:1])
