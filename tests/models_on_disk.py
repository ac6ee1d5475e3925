"""Tiny random language models in folders, as users have them: adapters, GGUF files, multimodal and masked models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers as hf
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

TINY_LM = Path(__file__).parent.parent / "examples" / "tiny_lm"
VOCABULARY = 4096
WIDTH = 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def tokenizer() -> PreTrainedTokenizerBase:
    """The byte-level BPE of `examples/tiny_lm`."""
    return AutoTokenizer.from_pretrained(TINY_LM)


def _random(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The same model every time, with weights so large that every branch matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def llama() -> PreTrainedModel:
    return _random(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)))


def llava() -> PreTrainedModel:
    """A vision tower before a Llama; of a type that `AutoModelForCausalLM` does not know."""
    vision = hf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = hf.LlavaConfig(vision_config=vision, text_config=hf.LlamaConfig(**SIZES), image_token_index=4095)
    return _random(lambda: hf.LlavaForConditionalGeneration(config))


def bert() -> PreTrainedModel:
    config = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"} | {"pad_token_id": 0}
    return _random(lambda: hf.BertForMaskedLM(hf.BertConfig(**config)))


def esm() -> PreTrainedModel:
    """As ESM-2 is built: rotary positions, norms before the branches, one after the last block."""
    config = hf.EsmConfig(
        **{name: size for name, size in SIZES.items() if name not in ("num_key_value_heads", "pad_token_id")},
        pad_token_id=0,
        mask_token_id=1,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=False,
    )
    return _random(lambda: hf.EsmForMaskedLM(config))


def gemma4() -> PreTrainedModel:
    config = SIZES | {"pad_token_id": 0, "head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 0}
    config |= {"layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0}
    return _random(lambda: hf.Gemma4ForCausalLM(hf.Gemma4TextConfig(**config)))


def rwkv() -> PreTrainedModel:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "attention_hidden_size": WIDTH, "num_hidden_layers": 2}
    config = hf.RwkvConfig(**sizes, intermediate_size=48, context_length=64, bos_token_id=0, eos_token_id=0)
    return _random(lambda: hf.RwkvForCausalLM(config))


def save(model: PreTrainedModel, folder: Path) -> Path:
    """A model with its tokenizer."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def lora() -> PeftConfig:
    # Begun at random, where PEFT begins at no effect.
    return LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")


def save_adapter(folder: Path, base: Path, config: PeftConfig | None = None) -> Path:
    """An adapter for the model in a folder, without a tokenizer of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(hf.AutoModelForCausalLM.from_pretrained(base), config or lora())
        model.save_pretrained(folder)
    return folder


def save_gguf(folder: Path, name: str = "model.gguf") -> Path:
    """`llama()` and its tokenizer in one GGUF file, as llama.cpp's converter writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(folder / name, "llama")
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // SIZES["num_attention_heads"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    _add_tokenizer(writer)
    for name, weight in llama().state_dict().items():
        writer.add_tensor(_gguf_name(name), _gguf_order(name, weight).contiguous().numpy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return folder


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    bpe = tokenizer().backend_tokenizer
    vocabulary = sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer().all_special_tokens)
    types = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token, _ in vocabulary]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(types)
    writer.add_token_merges(_merges(bpe))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _merges(bpe: Any) -> list[str]:
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


def _gguf_name(name: str) -> str:
    for ours, theirs in _GGUF_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _gguf_order(name: str, weight: torch.Tensor) -> torch.Tensor:
    """llama.cpp rotates neighbouring dimensions of a head, transformers those half a head apart."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if heads is None:
        return weight
    n = SIZES[heads]
    return weight.reshape(n, 2, weight.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(weight.shape)
