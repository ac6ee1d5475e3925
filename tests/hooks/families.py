"""Tiny random models of many families, and where in their blocks the well-known places lie, written out by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedConfig, PreTrainedModel

from tests.older import skipping_unknown_models

VOCABULARY = 64
LAYERS = 2
Places = dict[str, str]


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        config: Makes a tiny config.
        blocks: Path of the list of blocks.
        embed: Path of the token embedding.
        places: A block's places beside its own input and output: role to path below the block, with the side.
        norm: Path of the norm after the last block, beside the list of blocks; empty where there is none.
        last_places: The same for the last block, where it is of another kind.
        model_class: Where it is not what `AutoModelForCausalLM` picks.
    """

    config: Callable[[], PreTrainedConfig]
    blocks: str
    embed: str
    places: Places
    last_places: Places | None = None
    norm: str = "norm"
    model_class: type[PreTrainedModel] | None = None

    @property
    def around(self) -> Places:
        """Places in no layer: portable name to canonical name."""
        norm = f"{self.blocks.rpartition('.')[0]}.{self.norm}.output"
        return {"embed": f"{self.embed}.output"} | ({"final_norm": norm} if self.norm else {})

    def expected(self, layer: int) -> Places:
        """All places of a layer: role to canonical name."""
        inside = self.last_places if layer == LAYERS - 1 and self.last_places is not None else self.places
        block = f"{self.blocks}.{layer}"
        around = {"resid_pre": f"{block}.input", "resid_post": f"{block}.output"}
        return around | {role: f"{block}.{path}" for role, path in inside.items()}


@cache
def build(name: str) -> PreTrainedModel:
    """The family's model, made once a session, with weights large enough that every branch matters."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    with skipping_unknown_models():
        config = family.config()
    model = family.model_class(config) if family.model_class else hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def input_ids(batch: int = 2, seq: int = 5) -> torch.Tensor:
    return torch.randint(3, VOCABULARY - 8, (batch, seq), generator=torch.Generator().manual_seed(1))


def without(entries: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in entries.items() if name not in names}


SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS_OF_8 = SMALL | {"head_dim": 8}
SMALL_GPT: dict[str, Any] = {"n_embd": 16, "n_layer": LAYERS, "n_head": 2, "n_positions": 32, "vocab_size": VOCABULARY}
SMALL_GPT |= {"bos_token_id": 1, "eos_token_id": 2}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR_ATTENTION: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

LLAMA = {
    "resid_mid": "post_attention_layernorm.input",
    "attn_out": "self_attn.output",
    "attn_z": "self_attn.o_proj.input",
    "mlp_in": "mlp.input",
    "mlp_act": "mlp.down_proj.input",
    "mlp_out": "mlp.output",
}
GEMMA_2 = LLAMA | {
    "resid_mid": "pre_feedforward_layernorm.input",
    "attn_out": "post_attention_layernorm.output",
    "mlp_out": "post_feedforward_layernorm.output",
}
GPT_2 = {
    "resid_mid": "ln_2.input",
    "attn_out": "attn.output",
    "attn_z": "attn.c_proj.input",
    "mlp_in": "mlp.input",
    "mlp_act": "mlp.c_proj.input",
    "mlp_out": "mlp.output",
}
GPT_NEOX = {
    "resid_mid": "post_attention_layernorm.input",
    "attn_out": "attention.output",
    "attn_z": "attention.dense.input",
    "mlp_in": "mlp.input",
    "mlp_act": "mlp.dense_4h_to_h.input",
    "mlp_out": "mlp.output",
}
FALCON = GPT_NEOX | {"attn_out": "self_attention.output", "attn_z": "self_attention.dense.input"}
OPT = {
    "resid_mid": "final_layer_norm.input",
    "attn_out": "self_attn.output",
    "attn_z": "self_attn.out_proj.input",
    "mlp_in": "fc1.input",
    "mlp_act": "fc2.input",
    "mlp_out": "fc2.output",
}


def _llama_like(
    config: Callable[..., PreTrainedConfig], places: Places = LLAMA, /, *, norm: str = "norm", **settings
) -> Family:
    return Family(lambda: config(**HEADS_OF_8 | settings), "model.layers", "model.embed_tokens", places, norm=norm)


def _gemma_3_with_vision() -> PreTrainedConfig:
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    return hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**HEADS_OF_8),
        vision_config=hf.SiglipVisionConfig(num_hidden_layers=LAYERS, **vision),
        mm_tokens_per_image=1,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
    )


def _falcon(places: Places, **settings) -> Family:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "vocab_size": VOCABULARY,
    }
    config = lambda: hf.FalconConfig(**sizes, bos_token_id=1, eos_token_id=2, **settings)  # noqa: E731
    return Family(config, "transformer.h", "transformer.word_embeddings", places, norm="ln_f")


def _bloom(places: Places, **settings) -> Family:
    sizes: dict[str, Any] = {"hidden_size": 16, "n_layer": LAYERS, "n_head": 2, "vocab_size": VOCABULARY}
    return Family(
        lambda: hf.BloomConfig(**sizes, **settings),
        "transformer.h",
        "transformer.word_embeddings",
        places,
        norm="ln_f",
    )


def _opt(places: Places, **settings) -> Family:
    sizes = without(SMALL, "intermediate_size", "num_key_value_heads") | {"ffn_dim": 24, "word_embed_proj_dim": 16}
    norm = "final_layer_norm" if settings.get("do_layer_norm_before", True) else ""
    config = lambda: hf.OPTConfig(**sizes | settings)  # noqa: E731
    return Family(config, "model.decoder.layers", "model.decoder.embed_tokens", places, norm=norm)


def _gpt_neox(places: Places, **settings) -> Family:
    config = lambda: hf.GPTNeoXConfig(**without(SMALL, "num_key_value_heads"), **settings)  # noqa: E731
    return Family(config, "gpt_neox.layers", "gpt_neox.embed_in", places, norm="final_layer_norm")


def _mamba() -> PreTrainedConfig:
    return hf.MambaConfig(hidden_size=16, num_hidden_layers=LAYERS, vocab_size=VOCABULARY, state_size=4)


def _gpt_neo() -> PreTrainedConfig:
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_layers": LAYERS,
        "num_heads": 2,
        "vocab_size": VOCABULARY,
        "window_size": 4,
    }
    attention_types = [[["global", "local"], 1]]
    return hf.GPTNeoConfig(**sizes, attention_types=attention_types, bos_token_id=1, eos_token_id=2)


def _jamba() -> PreTrainedConfig:
    attention: dict[str, Any] = {"attn_layer_period": 2, "attn_layer_offset": 1}
    experts: dict[str, Any] = {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    }
    mamba: dict[str, Any] = {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}
    return hf.JambaConfig(**SMALL, **attention, **experts, **mamba)


def _gemma_4(**settings) -> PreTrainedConfig:
    sizes: dict[str, Any] = HEADS_OF_8 | {"global_head_dim": 8, "vocab_size_per_layer_input": VOCABULARY}
    return hf.Gemma4TextConfig(**sizes, hidden_size_per_layer_input=4, num_kv_shared_layers=0, **settings)


MBART: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 3,  # which its config calls num_hidden_layers
    "decoder_layers": LAYERS,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
_JAMBA = {"resid_mid": "pre_ff_layernorm.input", "mlp_in": "feed_forward.input", "mlp_out": "feed_forward.output"}
_JAMBA_ATTENTION = {"attn_out": "self_attn.output", "attn_z": "self_attn.o_proj.input"}
_PARALLEL = without(LLAMA, "resid_mid")
_FUSED_EXPERTS = without(LLAMA, "mlp_act")

FAMILIES = {
    "bloom": _bloom(FALCON | {"attn_out": "self_attention.dense.output", "mlp_out": "mlp.dense_4h_to_h.output"}),
    "bloom-post-norm-residual": _bloom(
        without(FALCON, "resid_mid", "attn_out", "mlp_out"), apply_residual_connection_post_layernorm=True
    ),
    "cohere": _llama_like(hf.CohereConfig, _PARALLEL),
    "cohere2": _llama_like(hf.Cohere2Config, _PARALLEL),
    "falcon": _falcon(without(FALCON, "resid_mid")),
    "falcon-new": _falcon(without(FALCON, "resid_mid"), new_decoder_architecture=True, num_kv_heads=1),
    "falcon-sequential": _falcon(FALCON, parallel_attn=False),
    "gemma": _llama_like(hf.GemmaConfig),
    "gemma2": _llama_like(hf.Gemma2Config, GEMMA_2),
    "gemma3": _llama_like(hf.Gemma3TextConfig, GEMMA_2),
    "gemma3-vision": Family(
        _gemma_3_with_vision,
        "model.language_model.layers",
        "model.language_model.embed_tokens",
        GEMMA_2,
        model_class=hf.Gemma3ForConditionalGeneration,
    ),
    "gemma4": Family(_gemma_4, "model.layers", "model.embed_tokens", GEMMA_2),
    "gemma4-experts": Family(
        lambda: _gemma_4(enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=8),
        "model.layers",
        "model.embed_tokens",
        without(GEMMA_2, "mlp_in", "mlp_act"),
    ),
    "glm4": _llama_like(
        hf.Glm4Config, LLAMA | {"attn_out": "post_self_attn_layernorm.output", "mlp_out": "post_mlp_layernorm.output"}
    ),
    "gpt-neo": Family(
        _gpt_neo, "transformer.h", "transformer.wte", GPT_2 | {"attn_z": "attn.attention.out_proj.input"}, norm="ln_f"
    ),
    "gpt-neox": _gpt_neox(without(GPT_NEOX, "resid_mid")),
    "gpt-neox-sequential": _gpt_neox(GPT_NEOX, use_parallel_residual=False),
    "gpt-oss": _llama_like(hf.GptOssConfig, _FUSED_EXPERTS, **EXPERTS),
    "gpt2": Family(lambda: hf.GPT2Config(**SMALL_GPT), "transformer.h", "transformer.wte", GPT_2, norm="ln_f"),
    "gptj": Family(
        lambda: hf.GPTJConfig(**SMALL_GPT, rotary_dim=4),
        "transformer.h",
        "transformer.wte",
        without(GPT_2, "resid_mid") | {"attn_z": "attn.out_proj.input", "mlp_act": "mlp.fc_out.input"},
        norm="ln_f",
    ),
    "granite": _llama_like(
        hf.GraniteConfig, without(LLAMA, "attn_out", "mlp_out"), residual_multiplier=0.25, embedding_multiplier=3.0
    ),
    "granite-shared-experts": _llama_like(
        hf.GraniteMoeSharedConfig,
        without(_FUSED_EXPERTS, "mlp_out") | {"mlp_in": "post_attention_layernorm.output"},
        shared_intermediate_size=12,
        **EXPERTS,
    ),
    "jamba": Family(
        _jamba,
        "model.layers",
        "model.embed_tokens",
        _JAMBA | {"mlp_act": "feed_forward.down_proj.input"},
        _JAMBA | _JAMBA_ATTENTION,
        norm="final_layernorm",
    ),
    "llama": _llama_like(hf.LlamaConfig, num_key_value_heads=1),
    "mamba": Family(_mamba, "backbone.layers", "backbone.embeddings", {}, norm="norm_f"),
    "mbart": Family(
        lambda: hf.MBartConfig(**MBART), "model.decoder.layers", "model.decoder.embed_tokens", OPT, norm="layer_norm"
    ),
    "mistral": _llama_like(hf.MistralConfig, num_key_value_heads=1),
    "mixtral": _llama_like(hf.MixtralConfig, _FUSED_EXPERTS, **EXPERTS),
    "nemotron-h": Family(
        lambda: hf.NemotronHConfig(**HEADS_OF_8 | {"layers_block_type": ["attention", "mlp"]}),
        "model.layers",
        "model.embeddings",
        {"attn_out": "mixer.output", "attn_z": "mixer.o_proj.input"},
        {"mlp_in": "mixer.input", "mlp_act": "mixer.down_proj.input", "mlp_out": "mixer.output"},
        norm="norm_f",
    ),
    "olmo2": _llama_like(hf.Olmo2Config, without(GEMMA_2, "resid_mid")),
    "olmoe": _llama_like(hf.OlmoeConfig, _FUSED_EXPERTS, **EXPERTS),
    "opt": _opt(OPT),
    "opt-post-norm": _opt(
        without(OPT, "resid_mid", "attn_out", "mlp_out"), do_layer_norm_before=False, word_embed_proj_dim=8
    ),
    "phi": _llama_like(
        hf.PhiConfig,
        _PARALLEL | {"attn_z": "self_attn.dense.input", "mlp_act": "mlp.fc2.input"},
        norm="final_layernorm",
    ),
    "phi3": _llama_like(hf.Phi3Config),
    "qwen2": _llama_like(hf.Qwen2Config, num_key_value_heads=1),
    "qwen3": _llama_like(hf.Qwen3Config),
    "qwen3-moe": _llama_like(hf.Qwen3MoeConfig, _FUSED_EXPERTS, moe_intermediate_size=8, **EXPERTS),
    "qwen3-next": Family(
        lambda: hf.Qwen3NextConfig(
            **HEADS_OF_8 | EXPERTS | LINEAR_ATTENTION, moe_intermediate_size=8, shared_expert_intermediate_size=8
        ),
        "model.layers",
        "model.embed_tokens",
        without(_FUSED_EXPERTS, "attn_out", "attn_z"),
        _FUSED_EXPERTS,
    ),
    "smollm3": _llama_like(hf.SmolLM3Config),
    "stablelm": _llama_like(hf.StableLmConfig),
    "stablelm-parallel": _llama_like(hf.StableLmConfig, _PARALLEL, use_parallel_residual=True),
}
