"""The embedded GPT-2 as TransformerLens runs it."""

from pathlib import Path

from embedded_tokenizer import tokenizer_of
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel


def lens_model(folder: str | Path, cls: type = HookedTransformer) -> HookedTransformer:
    """A GPT-2 in a folder, its weights neither folded nor centred."""
    hf = GPT2LMHeadModel.from_pretrained(folder).eval()
    config = HookedTransformerConfig(
        n_layers=hf.config.n_layer,
        d_model=hf.config.n_embd,
        n_ctx=hf.config.n_positions,
        d_head=hf.config.n_embd // hf.config.n_head,
        n_heads=hf.config.n_head,
        d_vocab=hf.config.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=hf.config.layer_norm_epsilon,
        model_name=Path(folder).name,
        original_architecture="GPT2LMHeadModel",
        device="cpu",
    )
    model = cls(config, tokenizer=tokenizer_of(folder))
    unprocessed = {
        "fold_ln": False,
        "center_writing_weights": False,
        "center_unembed": False,
        "fold_value_biases": False,
    }
    model.load_and_process_state_dict(convert_gpt2_weights(hf, config), **unprocessed)
    return model.eval()
