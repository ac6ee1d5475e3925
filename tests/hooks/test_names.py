"""Names resolved against models, and the errors for those that cannot be."""

import pytest
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModelForCausalLM, OlmoConfig, XLMConfig, XLMWithLMHeadModel

from hfsae.hooks import (
    HookPoint,
    HookPointError,
    available_hook_points,
    capture,
    portable_name,
    resolve_hook_point,
    resolve_hook_points,
    transformer_lens_name,
)
from hfsae.hooks.decoder_blocks import transformer_lens_places
from hfsae.hooks.width import width
from tests.hooks.families import FAMILIES, SMALL, build
from tests.hooks.model_types import text_ids, tiny_model
from tests.older import OLDER_TRANSFORMERS, skipping_unknown_models


def resolved(model: nn.Module, *names: str | HookPoint) -> list[str]:
    return [str(point) for point in resolve_hook_points(model, names)]


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("resid_pre.1", "transformer.h.1.input"),
        ("resid_post.0", "transformer.h.0.output"),
        ("layers.1", "transformer.h.1.output"),
        ("layers.-1", "transformer.h.1.output"),
        ("attn_out.-2", "transformer.h.0.attn.output"),
        ("embed", "transformer.wte.output"),
        ("hook_embed", "transformer.wte.output"),
        ("blocks.1.hook_resid_pre", "transformer.h.1.input"),
        ("blocks.0.hook_resid_mid", "transformer.h.0.ln_2.input"),
        ("blocks.0.attn.hook_z", "transformer.h.0.attn.c_proj.input"),
        ("blocks.-1.mlp.hook_post", "transformer.h.1.mlp.c_proj.input"),
        ("blocks.1.mlp.hook_in", "transformer.h.1.mlp.input"),
        ("blocks.1.mlp.hook_out", "transformer.h.1.mlp.output"),
        ("blocks.1.attn.hook_out", "transformer.h.1.attn.output"),
        ("blocks.0.ln2.hook_out", "transformer.h.0.ln_2.output"),
        ("blocks.0.hook_in", "transformer.h.0.input"),
        ("blocks.0.hook_out", "transformer.h.0.output"),
        ("embed.hook_out", "transformer.wte.output"),
        ("final_norm", "transformer.ln_f.output"),
        ("ln_final", "transformer.ln_f.output"),
        ("ln_final.hook_out", "transformer.ln_f.output"),
        ("transformer.h.1.mlp.act.output", "transformer.h.1.mlp.act.output"),
        ("transformer.h.-1.mlp.output", "transformer.h.1.mlp.output"),
        ("transformer.ln_f.input", "transformer.ln_f.input"),
        (HookPoint("transformer.h.0", "input"), "transformer.h.0.input"),
    ],
)
def test_a_name_of_any_kind_leads_to_its_place(name, canonical):
    assert str(resolve_hook_point(build("gpt2"), name)) == canonical


def test_wildcards_and_ranges_name_many():
    model = build("gpt2")
    both = ["transformer.h.0.output", "transformer.h.1.output"]
    assert resolved(model, "resid_post.*") == both
    assert resolved(model, "resid_post.0-1") == both
    assert resolved(model, "layers.-2--1") == both
    assert resolved(model, "layers.0--1") == both
    assert resolved(model, "blocks.*.hook_resid_post") == both
    assert resolved(model, "transformer.h.*.output") == both
    assert resolved(model, "resid_post.1-1") == both[1:]
    assert resolved(model, "transformer.h.0-1.mlp.input") == ["transformer.h.0.mlp.input", "transformer.h.1.mlp.input"]


def test_every_place_is_given_once_in_the_order_of_its_first_name():
    names = ("resid_post.1", "layers.*", "blocks.0.hook_resid_pre")
    expected = ["transformer.h.1.output", "transformer.h.0.output", "transformer.h.0.input"]
    assert resolved(build("gpt2"), *names) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_portable_and_transformer_lens_names_lead_back_to_where_they_came_from(name):
    model = build(name)
    for portable, point in available_hook_points(model).items():
        assert portable_name(model, point) == portable
        assert resolve_hook_point(model, portable) == point
        lens = transformer_lens_name(model, point)
        assert lens is not None and lens.startswith(("blocks.", "hook_embed", "ln_final"))
        assert resolve_hook_point(model, lens) == point


def test_a_place_without_a_well_known_name_has_none():
    model = build("gpt2")
    assert portable_name(model, "transformer.ln_f.input") is None
    assert transformer_lens_name(model, "transformer.ln_f.input") is None


def test_where_a_norm_follows_the_branches_transformer_lens_names_both_their_ends():
    model = build("gemma2")
    ends = {name: str(resolve_hook_point(model, f"blocks.1.{name}")) for name in ("mlp.hook_out", "hook_mlp_out")}
    assert ends == {
        "mlp.hook_out": "model.layers.1.mlp.output",
        "hook_mlp_out": "model.layers.1.post_feedforward_layernorm.output",
    }
    assert str(resolve_hook_point(model, "blocks.1.attn.hook_out")) == "model.layers.1.self_attn.output"
    assert transformer_lens_name(model, "model.layers.1.mlp.output") == "blocks.1.mlp.hook_out"
    assert transformer_lens_name(build("llama"), "model.layers.1.mlp.output") == "blocks.1.hook_mlp_out"


def test_queries_keys_and_values_are_what_their_matrices_return():
    expected = [f"model.layers.{layer}.self_attn.q_proj.output" for layer in (0, 1)]
    assert resolved(build("llama"), "blocks.*.attn.hook_q") == expected
    assert resolved(build("llama"), "blocks.1.attn.hook_v") == ["model.layers.1.self_attn.v_proj.output"]
    assert transformer_lens_name(build("llama"), "model.layers.1.self_attn.k_proj.output") == "blocks.1.attn.hook_k"
    with pytest.raises(HookPointError, match=r"layer 1, a GPT2Block, has no attn.hook_q"):
        resolve_hook_point(build("gpt2"), "blocks.1.attn.hook_q")  # one matrix for all three
    with pytest.raises(HookPointError, match=r"has no attn.hook_q"):
        resolve_hook_point(build("qwen3-next"), "blocks.1.attn.hook_q")  # a gate comes with the queries


@pytest.mark.skipif(OLDER_TRANSFORMERS, reason="transformers 5.4 makes the keys that it does not use")
def test_layers_that_use_another_layer_s_keys_and_values_have_only_queries():
    model = tiny_model("gemma3n_text", num_kv_shared_layers=2)
    offered = [transformer_lens_places(block, model.config) for block in model.model.layers]
    has_keys = [("attn.hook_q" in places, "attn.hook_k" in places) for places in offered]
    assert has_keys == [(True, True)] * 2 + [(True, False)] * 2
    with capture(model, "blocks.*.attn.hook_q") as found:
        found.run(input_ids=text_ids(model))
    assert len(found) == 4


def test_what_a_norm_computes_before_its_weight_is_no_place():
    with pytest.raises(HookPointError, match="before it multiplies by its weight.*ln2.hook_out is what it returns"):
        resolve_hook_point(build("llama"), "blocks.1.ln2.hook_normalized")
    with skipping_unknown_models():
        model = AutoModelForCausalLM.from_config(OlmoConfig(**SMALL))  # its norms have no weight
    point = resolve_hook_point(model, "blocks.1.ln2.hook_normalized")
    assert str(point) == "model.layers.1.post_attention_layernorm.output"


def test_a_portable_name_in_a_model_without_recognisable_blocks_says_why():
    with pytest.raises(HookPointError, match=r"config says 2 layers.*transformer.attentions \(2\), transformer.ffns"):
        resolve_hook_point(
            XLMWithLMHeadModel(XLMConfig(emb_dim=16, n_layers=2, n_heads=2, n_words=64)), "resid_post.1"
        )


def test_wrappers_are_told_to_pass_the_model_inside():
    with pytest.raises(HookPointError, match="pass the model inside, model.module"):
        resolve_hook_point(nn.DataParallel(build("gpt2")), "resid_post.1")
    averaged = AveragedModel(build("gpt2"))
    with pytest.raises(HookPointError, match="AveragedModel is a wrapper: pass the GPT2LMHeadModel inside"):
        resolve_hook_point(averaged, "resid_post.1")
    assert str(resolve_hook_point(averaged, "module.transformer.h.1.output")) == "module.transformer.h.1.output"


@pytest.mark.parametrize(
    ("family", "name", "canonical"),
    [
        ("gemma3-vision", "model.layers.1.output", "model.language_model.layers.1.output"),
        ("gemma3-vision", "layers.1.mlp.input", "model.language_model.layers.1.mlp.input"),
        ("gemma3-vision", "model.embed_tokens.output", "model.language_model.embed_tokens.output"),
        ("gemma3", "model.language_model.layers.0.output", "model.layers.0.output"),
        ("opt", "decoder.layers.1.fc2.output", "model.decoder.layers.1.fc2.output"),
    ],
)
def test_a_canonical_name_from_another_wrapping_of_the_decoder_is_found(family, name, canonical):
    assert str(resolve_hook_point(build(family), name)) == canonical


@pytest.mark.parametrize(("family", "inner"), [("gpt2", "h.1"), ("llama", "layers.1"), ("gpt-neox", "layers.1")])
def test_a_base_model_answers_to_the_names_of_its_causal_lm(family, inner):
    model = build(family)
    canonical = str(resolve_hook_point(model, "resid_post.1"))
    assert str(resolve_hook_point(model.base_model, canonical)) == f"{inner}.output"
    assert str(resolve_hook_point(model.base_model, "resid_post.1")) == f"{inner}.output"


def test_a_wrong_path_outside_of_the_decoder_is_not_looked_for_inside():
    with pytest.raises(HookPointError, match="no hook point"):
        resolve_hook_point(build("gemma3-vision"), "model.vision.encoder.layers.1.output")


@pytest.mark.parametrize(
    "name", ["resid_post.2", "layers.-3", "blocks.12.hook_resid_pre", "transformer.h.2.output", "attn_z.0-2"]
)
def test_a_layer_out_of_range_says_how_many_there_are(name):
    with pytest.raises(HookPointError, match=r"GPT2LMHeadModel has 2 layers, 0 to 1 \(or -2 to -1\)"):
        resolve_hook_points(build("gpt2"), name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resid_pst.1", "resid_post.1"),
        ("transformer.h.1.mpl.output", "transformer.h.1.mlp.output"),
        ("transformer.h.1", "transformer.h.1.output"),
        ("transformer.wtf.output", "transformer.wte.output"),
        ("blocks.1.hook_resid_past", "blocks.1.hook_resid_post"),
        ("resid_post", "resid_post.1"),
        ("embedding", "embed"),
    ],
)
def test_an_unknown_name_lists_the_nearest_places(name, nearest):
    with pytest.raises(HookPointError, match="GPT2LMHeadModel has no hook point") as error:
        resolve_hook_points(build("gpt2"), name)
    assert nearest in str(error.value).split("the nearest are: ")[1].split(", ")


def test_a_list_of_modules_is_no_place():
    with pytest.raises(HookPointError, match="no hook point"):
        resolve_hook_point(build("gpt2"), "transformer.h.output")


def test_a_place_that_a_layer_lacks_says_what_it_has_and_which_layers_have_the_place():
    model = build("qwen3-next")
    with pytest.raises(HookPointError, match=r"layer 0, a Qwen3NextDecoderLayer, has no attn_out") as error:
        resolve_hook_point(model, "attn_out.0")
    assert "layers that have it: 1" in str(error.value)
    assert "resid_pre, resid_mid, resid_post, mlp_in, mlp_out" in str(error.value)
    with pytest.raises(HookPointError, match="no layer of this model has it"):
        resolve_hook_point(build("gptj"), "resid_mid.0")


def test_in_a_hybrid_a_wildcard_takes_the_layers_that_have_the_place_and_a_range_does_not_leave_any_out():
    model = build("jamba")
    assert resolved(model, "attn_out.*") == ["model.layers.1.self_attn.output"]
    assert resolved(model, "model.layers.*.mamba.output") == ["model.layers.0.mamba.output"]
    with pytest.raises(HookPointError, match="layer 0"):
        resolve_hook_points(model, "attn_out.0-1")
    with pytest.raises(HookPointError, match=r"model\.layers\.1\.mamba"):
        resolve_hook_points(model, "model.layers.0-1.mamba.output")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resid_post.1-0", "runs from layer 1 down to layer 0"),
        ("transformer.*.ln_1.output", "only stand for the decoder's layer"),
        ([], "no hook point was named"),
    ],
)
def test_a_selection_that_makes_no_sense_says_why(name, message):
    with pytest.raises(HookPointError, match=message):
        resolve_hook_points(build("gpt2"), name)


@pytest.mark.parametrize("name", ["resid_post.*", "layers.0-0", "transformer.h.*.output"])
def test_one_place_cannot_be_asked_for_by_a_name_for_many(name):
    with pytest.raises(HookPointError, match="resolve_hook_points"):
        resolve_hook_point(build("gpt2"), name)


def test_the_name_of_a_model_has_no_places():
    for found in (resolve_hook_point, resolve_hook_points, width):
        with pytest.raises(TypeError, match="hook points are places in a model, got a str: load the model first"):
            found("gpt2", "resid_post.1")  # type: ignore[arg-type]
