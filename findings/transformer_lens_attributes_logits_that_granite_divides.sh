#!/usr/bin/env bash
# transformer-lens 4.3.0: direct_logit_attribution() of a Granite adds up to 8 or 16 times the logits that it explains.
#
# Granite divides what the unembedding gives by logits_scaling, 8 or 16 in the released models. The tool multiplies
# components with the columns of W_U, which know nothing of it. It promises that a complete decomposition gives the logit
# without its bias, and before it answers it holds its readout against the model's logits. That check does divide, so it
# passes. Cohere has a factor at the same place, which compatibility mode folds into W_U: there the sum is right. So
# figures of two models cannot be compared, nor those of a component with a change of logits that was measured.
# ActivationCache.logit_attrs gives the same figures. Ratios within one model are right.
# Expected: the attributions of embedding, attention and MLPs sum to the difference of two logits (no model here has b_U).
# Seen, tiny random models in compatibility mode, whose logits are those of transformers (sum / difference of logits):
#   Llama 1.000, Cohere 1.000, Granite 8.000 and 16.000 with logits_scaling 8 and 16, GraniteMoe 8.000
# No warning is given. Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 transformer-lens==4.3.0
cat > "$folder/check.py" <<'PYTHON'
import importlib.metadata
import sys

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import direct_logit_attribution
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, GraniteMoeConfig, LlamaConfig
from transformers import PreTrainedTokenizerFast

words = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0", unk_token="w0")
ids = torch.arange(3, 11)[None]
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
sizes |= dict(vocab_size=64, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)
granite = sizes | dict(residual_multiplier=0.22, embedding_multiplier=12.0)
configs = {
    "Llama": (LlamaConfig(**sizes), 1),
    "Cohere": (CohereConfig(**sizes, logit_scale=0.0625), 1),
    "Granite, 8": (GraniteConfig(**granite, logits_scaling=8.0), 8),
    "Granite, 16": (GraniteConfig(**granite, logits_scaling=16.0), 16),
    "GraniteMoe, 8": (GraniteMoeConfig(**granite, logits_scaling=8.0, num_local_experts=2, num_experts_per_tok=1), 8),
}


@torch.no_grad()
def compared(config, folder):
    """The attributions' sum over the difference of two logits, and how far the bridge's logits are from the model's."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 0.3)
        else:
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    wanted = model(ids).logits[0, -1]
    bridge = TransformerBridge.boot_transformers(folder, device="cpu")
    bridge.enable_compatibility_mode()
    off = (bridge(ids)[0, -1].log_softmax(-1) - wanted.log_softmax(-1)).abs().max().item()
    found = direct_logit_attribution(bridge, ids, torch.tensor([10]), torch.tensor([20]))
    return (found.attribution.sum() / (wanted[10] - wanted[20])).item(), off


print("transformer-lens", importlib.metadata.version("transformer-lens"))
right = True
for number, (name, (config, seen)) in enumerate(configs.items()):
    ratio, off = compared(config, f"{sys.argv[1]}/{number}")
    print(f"{name}: sum of attributions / difference of logits {ratio:.3f}; log-probabilities are off by {off:.0e}")
    right &= abs(ratio / seen - 1) < 1e-2 and off < 1e-4
sys.exit(not right)
PYTHON
"$folder/env/bin/python" -W ignore "$folder/check.py" "$folder" 2> "$folder/log" || { tail -n 3 "$folder/log"; exit 1; }
