#!/usr/bin/env bash
# transformer-lens 3.9.0 and 4.3.0: enable_compatibility_mode() changes what gpt-oss computes.
#
# By default it folds value biases: b_V W_O goes into the output bias of attention, and b_V becomes 0. That rests on
# attention weights that sum to 1 over the tokens, so that every position gets the whole b_V. gpt-oss has a learnt sink
# beside the tokens that takes a share of the softmax, so less than b_V came through, and another share at each position.
# All other steps of the mode leave the probabilities as they are, and a user takes this one for such a step.
# Expected: log-probabilities before and after are the same up to rounding, as the mode gives for Llama, Mixtral and others.
# Seen, a tiny random gpt-oss (largest difference of log-probabilities from transformers'):
#   bridge as booted                                       below 1e-5
#   compatibility mode                                     0.57, with both releases; no warning
#   compatibility mode, fold_value_biases=False            below 1e-5
#   compatibility mode, sinks of -10000, which take none   below 1e-5
# Runs 4.3.0. Exits with 0 while that is so, with 1 when it has changed.
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
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

folder = f"{sys.argv[1]}/model"
words = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0", unk_token="w0")
ids = torch.arange(3, 11)[None]
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=8)
sizes |= dict(intermediate_size=48, vocab_size=64, num_local_experts=4, num_experts_per_tok=2, pad_token_id=0)


@torch.no_grad()
def difference(sink, **folds):
    """How far log-probabilities are from those of transformers, as booted and in compatibility mode."""
    torch.manual_seed(0)
    model = GptOssForCausalLM(GptOssConfig(**sizes)).eval()
    for name, parameter in model.named_parameters():
        parameter.add_(0.15 * torch.randn_like(parameter))
        if name.endswith("sinks"):
            parameter.fill_(sink)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    wanted = model(ids).logits.log_softmax(-1)
    bridge = TransformerBridge.boot_transformers(folder, device="cpu")
    found = [(bridge(ids).log_softmax(-1) - wanted).abs().max().item()]
    bridge.enable_compatibility_mode(**folds)
    return [*found, (bridge(ids).log_softmax(-1) - wanted).abs().max().item()]


plain, folded = difference(0.0)
_, unfolded = difference(0.0, fold_value_biases=False)
_, without_sinks = difference(-1e4)
print("transformer-lens", importlib.metadata.version("transformer-lens"))
print(f"as booted {plain:.1e}, compatibility mode {folded:.2f}, ", end="")
print(f"with fold_value_biases=False {unfolded:.1e}, without sinks {without_sinks:.1e}")
sys.exit(not (folded > 0.1 and max(plain, unfolded, without_sinks) < 1e-4))
PYTHON
"$folder/env/bin/python" -W ignore "$folder/check.py" "$folder" 2> "$folder/log" || { tail -n 3 "$folder/log"; exit 1; }
