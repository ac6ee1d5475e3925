"""Tiny random models of every type that `AutoModelForCausalLM` knows, their configs built from field names.

    model = tiny_model("qwen3_next")       # hidden 32, 4 layers, vocabulary 64, every parameter shaken

`VALUES` says what a field is set to wherever a config class has it; `OVERRIDES` what else single types need.
"""

import dataclasses
from typing import Any

import torch
import transformers as hf
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.older import skipping_unknown_models

HIDDEN = 32
LAYERS = 4
VOCABULARY = 64
LONGEST = 64
MODEL_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _same(value: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


VALUES: dict[str, Any] = {
    **_same(
        HIDDEN, "hidden_size hidden_size_global d_model n_embd embedding_size emb_dim attention_hidden_size dim_model"
    ),
    **_same(LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers"),
    **_same(4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    **_same(4, "swa_num_attention_heads linear_num_heads num_encoder_attention_heads num_decoder_attention_heads"),
    **_same(2, "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads linear_num_value_heads"),
    **_same(8, "head_dim global_head_dim swa_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim"),
    **_same(8, "v_head_dim qk_nope_head_dim qk_rope_head_dim index_head_dim rotary_dim dim_head d_kv kv_channels"),
    **_same(16, "qk_head_dim kv_lora_rank q_lora_rank o_lora_rank"),
    **_same(48, "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim dff dim_ff ffn_hidden_size"),
    **_same(
        48, "shared_expert_intermediate_size shared_intermediate_size intermediate_size_mlp expert_ffn_hidden_size"
    ),
    **_same(24, "moe_intermediate_size prefix_dense_intermediate_size"),
    **_same(4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    **_same(2, "num_experts_per_tok moe_topk moe_k top_k_experts index_n_heads"),
    **_same(1, "n_shared_experts num_shared_experts n_group topk_group first_k_dense_replace num_dense_layers"),
    **_same(VOCABULARY, "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size"),
    **_same(
        LONGEST, "max_position_embeddings n_positions n_ctx max_seq_len max_source_positions max_target_positions"
    ),
    **_same(LONGEST, "index_topk"),  # An index that leaves tokens out tips over at the slightest difference.
    **_same(16, "mamba_d_state state_size ssm_state_size hidden_size_per_layer_input laurel_rank sliding_window"),
    **_same(4, "mamba_d_conv conv_kernel time_step_rank mamba_dt_rank conv_L_cache chunk_size mamba_chunk_size"),
    **_same(True, "is_decoder"),  # BERT's kin are bidirectional otherwise.
    **_same(0, "pad_token_id"),
    **_same(1, "bos_token_id"),
    **_same(2, "eos_token_id decoder_start_token_id"),
}
_MLA = {"num_key_value_heads": 4}  # Latent attention expands keys for every head.
_DRAFT = {"num_kv_shared_layers": LAYERS}  # A draft model reads the keys and values of the model that it drafts for.
_ONE_ATTENTION = ["linear_attention", "full_attention"] * 2
OVERRIDES: dict[str, dict[str, Any]] = {
    **_same(_MLA, "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa minicpm3"),
    **_same(_MLA, "youtu sarvam_mla"),
    "bailing_hybrid": _MLA | {"layer_group_size": 2},
    "bamba": {"mamba_n_heads": 4, "attn_layer_indices": [1, 3]},
    "blt": {"use_cache": False, "encoder_hash_byte_group_vocab": 100},
    "blt_global_transformer": {"intermediate_size": 48},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": HIDDEN},
    },
    "dory": {"n_input_layers": 1, "n_output_layers": 1},
    "dots3_note_text": _MLA | {"use_sliding_window": False},
    "longcat_flash": {"zero_expert_num": 2} | _MLA,
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma4_assistant": {
        "text_config": _DRAFT
        | {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "gemma4_unified_assistant": {"text_config": _DRAFT | {"model_type": "gemma4_unified_text"}},
    "gemma4_unified_vision": {"patch_size": 2, "mm_embed_dim": 16, "mm_posemb_size": 4, "output_proj_dims": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"mamba_n_heads": 4, "layer_types": _ONE_ATTENTION},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": _MLA | {"layer_types": _ONE_ATTENTION},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "phi4_multimodal_audio": {
        "num_blocks": 2,
        "nemo_conv_channels": 16,
        "ext_pw_out_channel": 32,
        "depthwise_separable_out_channel": 32,
        "input_size": 16,
    },
    "qwen4_exp_text": {
        "layer_types": _ONE_ATTENTION,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_count": 2,
        "hc_lowrank": 8,
    },
    "reformer": {"is_decoder": True, "attn_layers": ["local", "lsh"] * 2, "axial_pos_embds": False},
    "roc_bert": {"pronunciation_vocab_size": 32, "shape_vocab_size": 32},
    "xlstm": {"hidden_size": 2 * HIDDEN, "chunk_size": 16, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 2 * HIDDEN,
        "attention_head_dim": 16,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def model_class(model_type: str) -> type[PreTrainedModel]:
    """The class that `AutoModelForCausalLM` has for a model type."""
    return getattr(hf, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])


def tiny_config(model_type: str, **settings: Any) -> PreTrainedConfig:
    """A tiny config of one model type; `settings` go before everything else."""
    return _tiny(model_class(model_type).config_class, settings)


def _tiny(config_class: type[PreTrainedConfig], settings: dict[str, Any]) -> PreTrainedConfig:
    settings = OVERRIDES.get(config_class.model_type, {}) | settings
    fields = {field.name for field in dataclasses.fields(config_class)}
    values = {name: value for name, value in VALUES.items() if name in fields} | settings
    for name, sub_class in config_class.sub_configs.items():
        inner = dict(settings.get(name, {}))
        if sub_class is hf.AutoConfig:
            model_type = inner.pop("model_type", None)
            sub_class = CONFIG_MAPPING[model_type] if model_type else type(getattr(config_class(), name))
        values[name] = _tiny(sub_class, inner)
    return config_class(**values)


def tiny_model(model_type: str, **settings: Any) -> PreTrainedModel:
    """A model of one type with random weights, all of them shaken: a gate that starts at zero would hide a fault."""
    torch.manual_seed(0)
    with skipping_unknown_models():
        model = model_class(model_type)(tiny_config(model_type, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def text_ids(model: PreTrainedModel, batch: int = 2, seq: int = 7) -> torch.Tensor:
    """Token ids that mean text; (batch * codebooks, seq) where a model reads several codebooks at once."""
    rows = batch * getattr(model.config, "num_codebooks", 1)
    return torch.randint(3, VOCABULARY - 8, (rows, seq), generator=torch.Generator().manual_seed(1))
