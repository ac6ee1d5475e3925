"""Sources of a crosscoder: joined and split, some of them missing, each with its scale, and each by itself."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from hfsae import SAE, BatchTopKSAE, CrosscoderSAEConfig, JumpReLUSAE, StandardSAE, TopKSAE
from hfsae.autoencoder.initialisation import initialise
from tests.architectures.variants import CROSSCODERS, D_IN, N_FEATURES, VARIANTS, activations, state

every_crosscoder = pytest.mark.parametrize("name", CROSSCODERS)
BASE, TUNED = 2, 4
SOURCES = {"source_names": ["base", "tuned"], "source_widths": [BASE, TUNED]}


def by_source(n_tokens: int = 20) -> dict[str, Tensor]:
    joined = activations(n_tokens)
    return {"base": joined[:, :BASE], "tuned": joined[:, BASE:]}


# -- joined and split -------------------------------------------------------------------------------------------------
@every_crosscoder
def test_activations_by_source_in_any_order_are_those_behind_each_other(name: str):
    sae, x = VARIANTS[name].make(), activations(20)
    swapped = dict(reversed(by_source().items()))
    assert torch.equal(sae.encode(swapped), sae.encode(x))
    assert torch.equal(sae(swapped).reconstruction, sae(x).reconstruction)
    assert torch.equal(sae(swapped, state=state()).loss, sae(x, state=state()).loss)
    parts = sae.split(sae(x).reconstruction)
    assert list(parts) == ["base", "tuned"] and parts["tuned"].shape == (20, TUNED)
    assert torch.equal(sae.join(parts), sae(x).reconstruction)


def test_sources_of_sequences_in_a_narrow_type_are_joined_in_the_type_of_the_weights():
    sae = VARIANTS["crosscoder"].make(dtype=torch.float32)
    parts = {name: part.bfloat16().reshape(4, 5, -1) for name, part in by_source().items()}
    assert sae.join(parts).shape == (4, 5, D_IN) and sae.join(parts).dtype == torch.float32
    assert sae.encode(parts).shape == sae.encode({"base": parts["base"]}).shape == (4, 5, N_FEATURES)


@every_crosscoder
def test_pre_activations_are_the_sum_of_what_the_sources_add(name: str):
    """By hand: each source at its own scale, less its own centre, through its own columns."""
    sae = VARIANTS[name].make()
    added = [
        (scale * part - centre) @ columns.T
        for scale, part, centre, columns in zip(
            sae.input_scale,
            by_source().values(),
            sae.b_dec.split([BASE, TUNED]),
            sae.encoder.weight.split([BASE, TUNED], 1),
            strict=True,
        )
    ]
    assert sae.input_scale[0] != sae.input_scale[1]
    torch.testing.assert_close(sae.pre_activations(by_source()), sum(added) + sae.encoder.bias)
    torch.testing.assert_close(sae.pre_activations({"tuned": by_source()["tuned"]}), added[1] + sae.encoder.bias)


@every_crosscoder
def test_every_source_starts_at_a_scale_of_its_own(name: str):
    sae = SAE.from_config(VARIANTS[name].make().config)
    x = torch.cat([1000 * activations(500)[:, :BASE], 0.01 * activations(500)[:, BASE:]], 1).float()
    initialise(sae, x)
    for part in sae.split(sae.scaled(x)).values():
        assert part.norm(dim=1).mean().item() == pytest.approx(part.shape[1] ** 0.5, rel=1e-5)


def test_one_source_without_a_number_but_0_is_refused_at_the_start():
    x = activations(50).float()
    x[:, :BASE] = 0
    with pytest.raises(ValueError, match="needs finite activations, not all of them 0: their mean norm is 0, "):
        initialise(SAE.from_config(VARIANTS["crosscoder"].make().config), x)


@every_crosscoder
def test_norms_by_source_are_those_of_the_parts_of_a_row(name: str):
    sae = VARIANTS[name].make()
    expected = [sae.W_dec[:, :BASE].square().sum(1).sqrt(), sae.W_dec[:, BASE:].square().sum(1).sqrt()]
    torch.testing.assert_close(sae.source_norms, torch.stack(expected, 1))


# -- some of them -----------------------------------------------------------------------------------------------------
@every_crosscoder
@pytest.mark.parametrize("options", [{}, {"subtract_b_dec": False}, {"rescale_by_decoder_norm": True}], ids=str)
@pytest.mark.parametrize("given", ["base", "tuned"])
def test_a_source_alone_is_an_ordinary_sae_with_the_features_of_encode(name: str, options: dict, given: str):
    sae, part = VARIANTS[name].make(**options), by_source()[given]
    alone = sae.source(given)
    plain = {"crosscoder": BatchTopKSAE, "topk_crosscoder": TopKSAE, "jumprelu_crosscoder": JumpReLUSAE}
    assert type(alone) is plain.get(name, StandardSAE)
    features = sae.encode({given: part})
    assert features.any() and not torch.equal(features, sae.encode(by_source()))
    torch.testing.assert_close(alone.encode(part), features)
    torch.testing.assert_close(alone.decode(features), sae.split(sae.decode(features))[given])


def test_a_source_alone_is_not_aligned_where_the_rows_of_all_together_are():
    sae = VARIANTS["crosscoder"].make(aligned=True)
    assert sae.config.aligned and not sae.source("base").config.aligned


def test_a_source_left_out_stands_at_its_centre():
    for options in ({}, {"subtract_b_dec": False}):
        sae = VARIANTS["crosscoder"].make(**options)
        centre = (sae.b_dec[BASE:] / sae.input_scale[1]).expand(20, -1)
        whole = {"base": by_source()["base"], "tuned": centre}
        torch.testing.assert_close(sae.encode({"base": whole["base"]}), sae.encode(whole))


def test_a_source_alone_is_saved_knows_its_place_and_has_weights_of_its_own(tmp_path: Path):
    sae = VARIANTS["crosscoder"].make(hook_point="layers.1.output+layers.2.output", base_model="org/lm")
    alone = sae.source("tuned")
    alone.save_pretrained(tmp_path)
    loaded, part = SAE.from_pretrained(tmp_path), by_source()["tuned"]
    assert torch.equal(loaded.encode(part), alone.encode(part))
    assert (loaded.config.hook_point, loaded.config.base_model) == ("layers.2.output", "org/lm")
    assert (loaded.config.d_in, loaded.config.d_out, loaded.config.k) == (TUNED, TUNED, sae.config.k)
    before = sae.W_dec.clone()
    with torch.no_grad():
        alone.W_dec.zero_()
    assert torch.equal(sae.W_dec, before)


def test_a_source_alone_is_listed_and_exported_under_the_name_of_its_own_place():
    sae = VARIANTS["crosscoder"].make(hook_point="layers.1.output+layers.2.output")
    for recorded, own in (
        ("resid_post.1+resid_post.2", "resid_post.2"),
        ("resid_post.1", "resid_post.1"),
        (None, None),
    ):
        sae.config.training = {"portable_name": recorded, "n_tokens": 7}
        assert sae.source("tuned").config.training == {"portable_name": own, "n_tokens": 7}
        assert sae.config.training["portable_name"] == recorded
    sae.config.training = None
    assert sae.source("tuned").config.training is None


# -- what cannot be right ---------------------------------------------------------------------------------------------
def test_a_source_that_there_is_not_is_refused():
    sae, part = VARIANTS["crosscoder"].make(), by_source()["tuned"]
    for ask in (lambda: sae.encode({"tunde": part}), lambda: sae.source("tunde")):
        with pytest.raises(ValueError, match="there is no source 'tunde', but base, tuned. Did you mean 'tuned'"):
            ask()


@pytest.mark.parametrize("ask", [lambda sae, x: sae(x), lambda sae, x: sae(x, state=state())])
def test_a_reconstruction_needs_every_source(ask):
    with pytest.raises(ValueError, match="no activations of tuned are given: only `encode` can do without"):
        ask(VARIANTS["crosscoder"].make(), {"base": by_source()["base"]})


def test_sources_must_fit_their_widths_and_each_other():
    sae, parts = VARIANTS["crosscoder"].make(), by_source()
    with pytest.raises(ValueError, match=r"activations of tuned must have shape \(20, 4\).* got \(19, 4\)"):
        sae.encode({**parts, "tuned": parts["tuned"][:19]})
    with pytest.raises(ValueError, match=r"activations of base must have shape \(20, 2\).* got \(20, 4\)"):
        sae.encode({"base": parts["tuned"]})
    with pytest.raises(
        ValueError, match="no activations are given: give those of at least one of the sources base, tu"
    ):
        sae.encode({})
    with pytest.raises(ValueError, match="give those of each of the sources base, tuned"):
        sae({})


@pytest.mark.parametrize("wrong, got", [([1.0], "list"), (torch.ones(3, TUNED, dtype=torch.int64), "int64")])
def test_sources_that_are_no_floating_point_tensors_are_refused(wrong, got: str):
    with pytest.raises(TypeError, match=f"activations of tuned must be a floating point tensor, got .*{got}"):
        VARIANTS["crosscoder"].make().encode({"tuned": wrong})


def test_the_scales_of_several_sources_cannot_move_into_features():
    with pytest.raises(ValueError, match="needs one scale for all of input and output"):
        VARIANTS["crosscoder"].make().fold_input_scale("unit_rows")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"source_names": []}, "a crosscoder needs source_names, each once"),
        ({"source_names": ["base"]}, "as many source_widths"),
        ({"source_names": ["base", "base"]}, "each once"),
        ({"source_widths": [6, 0], "d_in": 6}, "each at least 1"),
        ({"d_in": 7}, "d_in=7 must be the sum of source_widths=[2, 4], 6"),
        ({"hook_point": "a+b+c"}, "hook_point='a+b+c' must join 2 places, one for each of"),
        ({"hook_point": "a", "target_hook_point": "b", "subtract_b_dec": False}, "takes no target_hook_point"),
        ({"skip": True}, "no skip"),
        ({"input_transform": "center"}, "no input_transform"),
    ],
)
def test_a_config_says_what_does_not_fit(options: dict, message: str):
    with pytest.raises((ValueError, StrictDataclassError), match=re.escape(message)):
        CrosscoderSAEConfig(**{**SOURCES, "n_features": 24, "k": 3, **options})


def test_places_of_the_sources():
    fields = {**SOURCES, "n_features": 24, "k": 3}
    assert CrosscoderSAEConfig(**fields).source_places == [None, None]
    assert CrosscoderSAEConfig(**fields, hook_point="a").source_places == ["a", "a"]
    assert CrosscoderSAEConfig(**fields, hook_point="a+b").source_places == ["a", "b"]
