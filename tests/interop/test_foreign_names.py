import pytest

from hfsae.interop.foreign_names import base_model_id, canonical, layer_of, module_path, transformer_lens

GPT2, NEOX, GEMMA, QWEN = "openai-community/gpt2", "EleutherAI/pythia-70m", "google/gemma-2-2b", "Qwen/Qwen3.5-2B-Base"


@pytest.mark.parametrize(
    "short, full",
    [
        ("gpt2-small", GPT2),
        ("pythia-160m", "EleutherAI/pythia-160m"),
        ("gemma-2-9b-it", "google/gemma-2-9b-it"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("my-own-model", "my-own-model"),
        ("", None),
        (None, None),
    ],
)
def test_short_names_of_models_become_hub_ids(short, full):
    assert base_model_id(short) == full


@pytest.mark.parametrize(
    "place, model, expected",
    [
        ("blocks.8.hook_resid_pre", GPT2, "transformer.h.8.input"),
        ("blocks.3.hook_resid_mid", GPT2, "transformer.h.3.ln_2.input"),
        ("blocks.3.hook_mlp_out", GEMMA, "model.layers.3.post_feedforward_layernorm.output"),
        ("blocks.3.hook_z", GPT2, "transformer.h.3.attn.c_proj.input"),
        ("hook_embed", NEOX, "gpt_neox.embed_in.output"),
        ("layers.5.mlp.output", NEOX, "gpt_neox.layers.5.mlp.output"),
        ("model.layers.7", QWEN, "model.layers.7.output"),
        ("model.layers.7.output", QWEN, "model.layers.7.output"),
        ("resid_post.2", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "model.layers.2.output"),
    ],
)
def test_places_become_canonical_without_the_model(place, model, expected):
    assert canonical(place, model) == expected


@pytest.mark.parametrize(
    "place, model",
    [
        ("blocks.8.hook_resid_pre", None),
        ("resid_post.3", "somebody/unheard-of"),
        (
            "blocks.18.ln2.hook_normalized",
            "meta-llama/Llama-3.1-8B",
        ),  # between a norm and its weight: no module's output
    ],
)
def test_a_name_that_nothing_is_known_of_stays_as_it_is(place, model):
    assert canonical(place, model) == place
    assert canonical(None, model) is None


def test_names_go_back():
    assert transformer_lens("transformer.h.8.input", GPT2) == "blocks.8.hook_resid_pre"
    assert transformer_lens("transformer.h.8.input", None) is None
    assert transformer_lens("transformer.h.8.attn.output", "somebody/unheard-of") is None
    assert transformer_lens("gpt_neox.layers.2.attention.query_key_value.output", NEOX) is None
    assert module_path("gpt_neox.layers.3.mlp.output", NEOX) == "layers.3.mlp"
    assert module_path("resid_post.3", NEOX) == "layers.3"
    assert layer_of("blocks.11.hook_resid_pre") == 11 and layer_of("hook_embed") is None
