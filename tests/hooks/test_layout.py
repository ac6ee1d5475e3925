"""Each family's well-known places: which are offered, where they lie, and that they are what their names say."""

import copy
import inspect
from functools import partial

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    MBartConfig,
    MBartForConditionalGeneration,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    ReformerConfig,
    ReformerModelWithLMHead,
)

from hfsae.hooks import HookPointError, available_hook_points, capture, resolve_hook_point
from hfsae.hooks.layout import DecoderLayout
from tests.hooks.families import FAMILIES, LAYERS, MBART, build, input_ids
from tests.hooks.witness import first, recorded
from tests.older import skipping_unknown_models

every_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture
def activations(name):
    """All that the family's model offers, from one forward pass."""
    model = build(name)
    with capture(model, list(available_hook_points(model))) as found:
        found.run(input_ids=input_ids())
    return found


def close(left: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@every_family
def test_the_names_on_offer_are_the_family_s_places_and_no_others(name):
    family = FAMILIES[name]
    expected = dict(family.around)
    for layer in range(LAYERS):
        expected |= {f"{role}.{layer}": place for role, place in family.expected(layer).items()}
    offered = available_hook_points(build(name))
    assert {portable: str(point) for portable, point in offered.items()} == expected


@every_family
def test_every_activation_is_what_a_plain_torch_hook_sees_there(name, activations):
    model = build(name)
    places = {portable: str(point) for portable, point in available_hook_points(model).items()}
    with torch.no_grad(), recorded(model, [place for place in places.values() if place != places["embed"]]) as seen:
        model(input_ids())
    for portable, place in places.items():
        assert activations[portable].shape[:2] == (2, 5), portable
        if portable == "embed":
            assert torch.equal(activations["embed"], model.get_input_embeddings()(input_ids()))
        else:
            assert torch.equal(activations[portable].flatten(), seen[place].flatten()), portable


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mamba"])
def test_the_residual_stream_is_what_the_model_reports_as_hidden_states(name, activations):
    with torch.no_grad():
        hidden_states = build(name)(input_ids(), output_hidden_states=True).hidden_states
    for layer in range(LAYERS):
        assert torch.equal(activations[f"resid_pre.{layer}"], hidden_states[layer])
    # The last entry that the model reports is already normalised.
    assert torch.equal(activations["resid_post.0"], hidden_states[1])


@every_family
def test_each_layer_hands_its_output_to_the_next(name, activations):
    assert torch.equal(activations["resid_post.0"], activations["resid_pre.1"])


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("gemma4")])
def test_the_branches_add_up_to_the_residual_stream_wherever_they_are_offered(name, activations):
    for layer in range(LAYERS):
        here = {key.split(".")[0]: value for key, value in activations.items() if key.endswith(f".{layer}")}
        if {"attn_out", "mlp_out"} <= here.keys():
            close(here["resid_pre"] + here["attn_out"] + here["mlp_out"], here["resid_post"])
        if {"attn_out", "resid_mid"} <= here.keys():
            close(here["resid_pre"] + here["attn_out"], here["resid_mid"])
        if {"mlp_out", "resid_mid"} <= here.keys():
            close(here["resid_mid"] + here["mlp_out"], here["resid_post"])


@pytest.mark.parametrize("name", ["gemma4", "gemma4-experts"])
def test_gemma_4_adds_what_the_token_says_and_scales_the_stream_after_its_branches(name):
    model = build(name)
    for layer in range(LAYERS):
        assert DecoderLayout(model).after_the_branches(layer) == ("post_per_layer_input_norm", "layer_scalar")
        block = model.get_submodule(f"model.layers.{layer}")
        added = f"model.layers.{layer}.post_per_layer_input_norm.output"
        roles = [f"{role}.{layer}" for role in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")]
        block.layer_scalar.fill_(0.75)
        try:
            with capture(model, [*roles, added]) as found:
                found.run(input_ids=input_ids())
        finally:
            block.layer_scalar.fill_(1.0)
        pre, attn, mid, mlp, post = (found[role] for role in roles)
        close(pre + attn, mid)
        close((mid + mlp + found[added]) * 0.75, post)


def test_blocks_with_one_branch_each_offer_it_by_its_kind():
    with capture(build("nemotron-h"), ["resid_pre.*", "attn_out.0", "mlp_out.1", "resid_post.*"]) as found:
        found.run(input_ids=input_ids())
    close(found["resid_pre.0"] + found["attn_out.0"], found["resid_post.0"])
    close(found["resid_pre.1"] + found["mlp_out.1"], found["resid_post.1"])


def test_layers_are_counted_from_the_modules_whatever_the_config_says():
    with skipping_unknown_models():
        config = FAMILIES["mbart"].config()
    assert config.num_hidden_layers == 3 and config.decoder_layers == LAYERS
    assert len(DecoderLayout(build("mbart")).blocks) == LAYERS
    model = AutoModelForCausalLM.from_config(FAMILIES["llama"].config())
    model.config.num_hidden_layers = 7
    assert len(DecoderLayout(model).blocks) == LAYERS


def test_a_model_that_uses_its_cross_attention_does_not_offer_the_attention_alone():
    sizes = {"encoder_attention_heads": 2, "encoder_ffn_dim": 24, "bos_token_id": 1, "eos_token_id": 2}
    with skipping_unknown_models():
        model = MBartForConditionalGeneration(MBartConfig(**MBART | sizes))
    offered = available_hook_points(model)
    assert str(offered["mlp_out.1"]) == "model.decoder.layers.1.fc2.output" and "attn_out.1" not in offered
    assert f"resid_post.{LAYERS}" not in offered


@every_family
def test_projecting_what_is_projected_by_hand_gives_the_branch_s_output(name, activations):
    model = build(name)
    for layer in range(LAYERS):
        places = FAMILIES[name].expected(layer)
        for inner, outer in (("attn_z", "attn_out"), ("mlp_act", "mlp_out")):
            if inner in places and outer in places:
                projection = model.get_submodule(places[inner].removesuffix(".input"))
                by_hand = projection(activations[f"{inner}.{layer}"])
                if "layernorm" in places[outer]:
                    by_hand = model.get_submodule(places[outer].removesuffix(".output"))(by_hand)
                close(by_hand, activations[f"{outer}.{layer}"])


@pytest.mark.parametrize("name", ["gpt2", "llama", "mixtral", "qwen3-moe", "gpt-oss", "falcon", "cohere", "olmo2"])
def test_calling_the_mlp_by_hand_gives_its_output(name, activations):
    model = build(name)
    places = FAMILIES[name].expected(1)
    by_hand = first(model.get_submodule(places["mlp_in"].removesuffix(".input"))(activations["mlp_in.1"]))
    if "layernorm" in places["mlp_out"]:
        by_hand = model.get_submodule(places["mlp_out"].removesuffix(".output"))(by_hand)
    close(by_hand, activations["mlp_out.1"])


def test_granite_scales_its_branches_outside_of_the_modules_so_only_the_stream_is_offered():
    model = build("granite")
    mlp = "model.layers.0.mlp.output"
    with torch.no_grad(), recorded(model, [mlp]) as seen, capture(model, ["resid_mid.0", "resid_post.0"]) as found:
        model(input_ids())
    close(found["resid_mid.0"] + 0.25 * seen[mlp], found["resid_post.0"])


def test_a_granite_that_scales_nothing_offers_its_branches():
    config = FAMILIES["granite"].config()
    config.residual_multiplier = 1.0
    model = AutoModelForCausalLM.from_config(config)
    assert {"attn_out.0", "mlp_out.0"} <= available_hook_points(model).keys()


def test_names_of_gpt_2_in_another_order_are_not_taken_for_gpt_2():
    config = OpenAIGPTConfig(n_embd=16, n_layer=2, n_head=2, vocab_size=64, n_positions=32)
    offered = available_hook_points(OpenAIGPTLMHeadModel(config))
    assert {"resid_pre.0", "resid_post.0", "attn_z.0"} <= offered.keys()
    assert not {"resid_mid.0", "attn_out.0", "mlp_out.0"} & offered.keys()


def test_a_vision_tower_with_as_many_layers_is_not_taken_for_the_decoder():
    model = build("gemma3-vision")
    towers = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    assert len(towers) == 2 and all(len(model.get_submodule(path)) == LAYERS for path in towers)
    assert resolve_hook_point(model, "resid_post.0").path == "model.language_model.layers.0"


def test_a_model_without_a_config_has_canonical_names_only():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert resolve_hook_point(model, "0.output").path == "0"
    with pytest.raises(HookPointError, match="module path and side"):
        available_hook_points(model)


def test_layers_that_cannot_be_told_from_other_lists_are_an_error_that_names_the_lists():
    model = AutoModelForCausalLM.from_config(FAMILIES["llama"].config())
    model.model.others = nn.ModuleList(nn.Identity() for _ in range(LAYERS))
    assert resolve_hook_point(model, "resid_post.1").path == "model.layers.1"
    model.model.shadows = copy.deepcopy(model.model.layers)
    with pytest.raises(HookPointError, match=r"model.layers \(2\), model.shadows \(2\)"):
        available_hook_points(model)


def test_blocks_that_pass_two_streams_have_no_portable_names():
    config = ReformerConfig(is_decoder=True, attn_layers=["local", "local"], axial_pos_embds=False)
    with pytest.raises(HookPointError, match="takes 'prev_attn_output' beside 'hidden_states'"):
        available_hook_points(ReformerModelWithLMHead(config))


def test_a_forward_that_seems_unbound_is_no_second_stream():
    """As nnsight puts it on every module."""
    model = copy.deepcopy(build("llama"))
    for block in model.model.layers:
        block.forward = partial(type(block).forward, block)
        block.forward.__signature__ = inspect.signature(type(block).forward)
    assert resolve_hook_point(model, "resid_post.1").path == "model.layers.1"
