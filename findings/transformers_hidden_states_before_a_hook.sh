#!/usr/bin/env bash
# transformers 5.23.0 and 5.24.0: what hidden_states say of an intervention depends on whether they were asked for before.
#
# output_hidden_states is served by forward hooks on the blocks. The first call that asks for hidden states puts them
# there, and they stay. A hook of one's own that replaces a block's output runs before them on a fresh model, and after
# them on a model that has been asked once. Then hidden_states hold what the block gave, not what the next block read.
# Expected: the same model, hook and input give the same hidden_states, those that the next block reads.
# Seen, block 0 of a Llama ablated to zeros (largest absolute value of hidden_states[1]; logits are the same both times):
#   fresh model                          0.0
#   after one call that asked for them   that of the model without the hook, to the last bit
# register_forward_hook(..., prepend=True) is seen in both cases.
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=64)
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
ids = torch.arange(3, 11)[None]


@torch.no_grad()
def ablated(**how):
    """Hidden states after block 0 and logits, with the block's output replaced by zeros."""
    hook = model.model.layers[0].register_forward_hook(lambda block, args, output: torch.zeros_like(output), **how)
    output = model(ids, output_hidden_states=True)
    hook.remove()
    return output.hidden_states[1], output.logits


fresh, logits = ablated()
with torch.no_grad():
    clean = model(ids, output_hidden_states=True).hidden_states[1]
later, later_logits = ablated()
first, first_logits = ablated(prepend=True)
print("transformers", transformers.__version__, "largest:", *(x.abs().max().item() for x in (fresh, later, clean, first)))
same_logits = torch.equal(logits, later_logits) and torch.equal(logits, first_logits)
so = same_logits and not fresh.any() and not first.any() and clean.any() and torch.equal(later, clean)
sys.exit(not so)
PYTHON

python3 -m venv "$folder/env"
for release in 5.23.0 5.24.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 "transformers==$release"
    "$folder/env/bin/python" -W ignore "$folder/check.py"
done
