#!/usr/bin/env bash
# transformer-lens 3.9.0 and 4.3.0: on a TransformerBridge an edit at hook_resid_mid does not change the residual stream.
#
# The residual stream after attention goes two ways: into the MLP, and around it. In HookedTransformer a hook at
# blocks.L.hook_resid_mid edits both, since resid_post = resid_mid + mlp_out. In TransformerBridge the name is an alias
# for the input of the norm before the MLP. What a hook returns reaches the MLP alone; around it the old value passes on.
# Patches, ablations and SAEs at this place then measure the path through one MLP, and are called by the old name.
# 4.x has no HookedTransformer any more. enable_compatibility_mode() changes nothing of it.
# Expected: zeros at blocks.0.hook_resid_mid leave blocks.0.hook_resid_post with mlp_out alone.
# Seen (resid_post equals mlp_out; equals resid_pre + attn_out + mlp_out, as if the stream had not been edited):
#   HookedTransformer  3.9.0          yes, no
#   TransformerBridge  3.9.0, 4.3.0   no, yes   (GPT-2 and Llama, with and without compatibility mode)
# No warning is given. Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import importlib.metadata
import sys

import torch
import transformer_lens
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

release, folder = importlib.metadata.version("transformer-lens"), sys.argv[1]
words = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0", unk_token="w0")
ids = torch.arange(3, 9)[None]


@torch.no_grad()
def edited(model):
    """Whether the stream after block 0 is the MLP's output alone, and whether it is what it was, plus that output."""
    names, kept = ["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"], {}
    hooks = [("blocks.0.hook_resid_mid", lambda value, hook: torch.zeros_like(value))]
    for name in names:
        hooks.append((f"blocks.0.{name}", lambda value, hook, name=name: kept.__setitem__(name, value.clone())))
    model.run_with_hooks(ids, fwd_hooks=hooks)
    before, attention, mlp, after = (kept[name] for name in names)
    return torch.allclose(after, mlp, atol=1e-5), torch.allclose(after, before + attention + mlp, atol=1e-5)


print("transformer-lens", release)
right = True
if release == "3.9.0":
    sizes = dict(n_layers=2, d_model=32, n_heads=4, d_head=8, d_mlp=48, n_ctx=32, d_vocab=64, act_fn="gelu", device="cpu")
    old = edited(transformer_lens.HookedTransformer(transformer_lens.HookedTransformerConfig(**sizes)))
    print("HookedTransformer", *old)
    right = old == (True, False)
for make in (
    lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, bos_token_id=1, eos_token_id=2)),
    lambda: LlamaForCausalLM(
        LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=64)
    ),
):
    for compatible in (False, True):
        torch.manual_seed(0)
        make().save_pretrained(f"{folder}/model")
        tokenizer.save_pretrained(f"{folder}/model")
        bridge = TransformerBridge.boot_transformers(f"{folder}/model", device="cpu")
        if compatible:
            bridge.enable_compatibility_mode()
        found = edited(bridge)
        print("TransformerBridge", type(bridge.original_model).__name__, "compatibility mode:", compatible, *found)
        right &= found == (False, True)
sys.exit(not right)
PYTHON
python3 -m venv "$folder/env"
for release in 3.9.0 4.3.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check \
        torch==2.13.0 transformers==5.23.0 "transformer-lens==$release"
    "$folder/env/bin/python" -W ignore "$folder/check.py" "$folder" 2> "$folder/log" || { tail -n 3 "$folder/log"; exit 1; }
done
