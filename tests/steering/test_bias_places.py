"""Which bias adds to which place, family by family, and that looking for it leaves a model as it was."""

import pytest
import torch
from transformers import LlamaConfig

from hfsae.hooks import resolve_hook_point
from hfsae.steering.bias_places import BiasPlace, NoBiasError, biased, find_bias_place
from tests.hooks.families import build, input_ids

IN_THE_CONFIG = {
    ("llama", "resid_post.0"): ("model.layers.0.mlp.down_proj", "mlp_bias"),
    ("llama", "resid_pre.1"): ("model.layers.0.mlp.down_proj", "mlp_bias"),
    ("llama", "resid_mid.1"): ("model.layers.1.self_attn.o_proj", "attention_bias"),
    ("smollm3", "mlp_out.1"): ("model.layers.1.mlp.down_proj", "mlp_bias"),
    ("gemma", "attn_out.0"): ("model.layers.0.self_attn.o_proj", "attention_bias"),
    ("falcon-sequential", "resid_post.0"): ("transformer.h.0.mlp.dense_4h_to_h", "bias"),
    # Both branches read the block's input, so the attention's bias does as well as the MLP's, which has none.
    ("cohere", "resid_post.0"): ("model.layers.0.self_attn.o_proj", "attention_bias"),
}
IN_THE_MODEL = {
    ("gpt2", "resid_post.1"): "transformer.h.1.mlp.c_proj.bias",
    ("gpt2", "resid_mid.0"): "transformer.h.0.attn.c_proj.bias",
    ("gpt2", "mlp_in.0"): "transformer.h.0.ln_2.bias",
    ("gpt2", "final_norm"): "transformer.ln_f.bias",
    ("gpt-neox", "resid_post.0"): "gpt_neox.layers.0.mlp.dense_4h_to_h.bias",
    ("bloom", "resid_mid.0"): "transformer.h.0.self_attention.dense.bias",
    ("opt", "mlp_out.0"): "model.decoder.layers.0.fc2.bias",
    # The norm of the sum comes last.
    ("opt-post-norm", "resid_post.0"): "model.decoder.layers.0.final_layer_norm.bias",
    # Every expert has a row, and their weights add up to 1.
    ("gpt-oss", "resid_post.0"): "model.layers.0.mlp.experts.down_proj_bias",
}
BY_AN_ADAPTER = {
    ("mistral", "resid_post.0"): "model.layers.0.mlp.down_proj",
    ("qwen2", "mlp_out.1"): "model.layers.1.mlp.down_proj",
    ("qwen3", "resid_post.1"): "model.layers.1.mlp.down_proj",
    ("gemma", "resid_post.0"): "model.layers.0.mlp.down_proj",
    ("phi3", "resid_mid.0"): "model.layers.0.self_attn.o_proj",
}
NOWHERE = {
    ("gemma2", "resid_post.0"): "norm model.layers.0.post_feedforward_layernorm stands between",
    ("gemma3", "mlp_out.1"): "norm model.layers.1.post_feedforward_layernorm stands between",
    ("olmo2", "resid_post.1"): "norm model.layers.1.post_feedforward_layernorm stands between",
    ("glm4", "attn_out.0"): "stands between",
    ("mixtral", "resid_post.0"): "mixture of experts",
    ("granite", "resid_post.0"): "scaled",
    ("llama", "mlp_in.0"): "no sum",
    ("gpt2", "mlp_act.0"): "no sum",
    ("llama", "resid_pre.0"): "the embedding",
    ("llama", "embed"): "not what a matrix or a norm",
}


def found(family: str, place: str) -> BiasPlace:
    model = build(family)
    return find_bias_place(model, resolve_hook_point(model, place))


@pytest.mark.parametrize(("where", "expected"), IN_THE_MODEL.items(), ids=str)
def test_a_bias_that_is_there_is_found(where, expected):
    place = found(*where)
    assert place.tensor == expected and place.has_bias and not place.config_fields


@pytest.mark.parametrize(("where", "expected"), IN_THE_CONFIG.items(), ids=str)
def test_a_bias_that_the_config_can_give_is_found(where, expected):
    place = found(*where)
    assert (place.module, place.config_fields) == (expected[0], {expected[1]: True}) and not place.has_bias


@pytest.mark.parametrize(("where", "expected"), BY_AN_ADAPTER.items(), ids=str)
def test_a_matrix_that_can_have_none_takes_an_adapter(where, expected):
    place = found(*where)
    assert place.module == expected and place.takes_adapter and not place.fits_weights


@pytest.mark.parametrize(("where", "reason"), NOWHERE.items(), ids=str)
def test_where_no_bias_does_the_reason_is_told(where, reason):
    with pytest.raises(NoBiasError, match=reason):
        found(*where)


def test_one_stream_of_several_and_one_visit_are_refused():
    model = build("llama")
    point = resolve_hook_point(model, "resid_post.0@1")
    with pytest.raises(NoBiasError, match="one visit"):
        find_bias_place(model, point)


@pytest.mark.parametrize(("family", "place"), [("llama", "resid_post.0"), ("gpt2", "resid_post.0")])
def test_afterwards_the_model_is_as_it_was(family, place):
    model = build(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, logits = model.config.to_dict(), model(input_ids()).logits
    where = found(family, place)
    with biased(model, where, torch.linspace(-2, 2, 16)):
        assert (model(input_ids()).logits - logits).abs().max() > 0.1
        if family == "llama":
            assert isinstance(model.config, LlamaConfig) and model.config.mlp_bias
    assert model.config.to_dict() == config and before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(input_ids()).logits, logits)
