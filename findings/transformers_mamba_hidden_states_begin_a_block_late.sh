#!/usr/bin/env bash
# transformers 5.23.0 and 5.24.0: hidden_states of Mamba, Mamba 2, Falcon Mamba and RWKV begin after the first block.
#
# hidden_states are said to be the embeddings' output and then each layer's, and have as many entries here as that
# needs. But in these families hidden_states[i] is what block i gives, where all others have what it reads. The
# embeddings are nowhere among them; the last two are the last block's output, before and after the final norm. Who
# takes "layer 3" of several models by hidden_states[3] reads one block further here, and a lens or probe of entry 0 is
# no baseline of embeddings. Nothing tells: shapes and number are those of the other families.
# Expected: hidden_states[0] is what the embedding gives and block 0 reads, as in Jamba, xLSTM and Llama.
# Seen with 4 blocks, 5 entries (which block's input or output each entry is, by hooks on the blocks):
#   Mamba, Mamba 2, Falcon Mamba, RWKV   output of 0, of 1, of 2, of 3, none
#   Jamba, xLSTM, Llama                  input of 0, of 1, of 2, of 3, none
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

transformers.logging.set_verbosity_error()
sizes = dict(hidden_size=64, num_hidden_layers=4, vocab_size=97)
heads = dict(num_attention_heads=4, num_key_value_heads=4, intermediate_size=96)
few = dict(num_experts=1, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1)
families = {
    "mamba": dict(state_size=8),
    "mamba2": dict(state_size=8, num_heads=8, head_dim=16, n_groups=1, chunk_size=8),
    "falcon_mamba": dict(state_size=8),
    "rwkv": {},
    "jamba": dict(heads, mamba_d_state=8, **few),
    "xlstm": dict(num_heads=4, chunk_size=8),
    "llama": heads,
}
late = ("mamba", "mamba2", "falcon_mamba", "rwkv")
ids = torch.randint(3, 97, (1, 16), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def entries(family):
    """For each entry of hidden_states the blocks that read it, and those that give it; whether 0 is embeddings."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **families[family])).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    blocks = next(one for one in model.modules() if isinstance(one, torch.nn.ModuleList) and len(one) == 4)
    read, given = [], []
    for block in blocks:
        block.register_forward_pre_hook(lambda _, args: read.append(args[0].clone()))
        block.register_forward_hook(lambda _, args, out: given.append(out[0] if isinstance(out, tuple) else out))
    states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    found = [[[n for n, x in enumerate(seen) if torch.equal(x, state)] for seen in (read, given)] for state in states]
    return found, torch.equal(states[0], model.get_input_embeddings()(ids))


so = True
for family in families:
    found, begins = entries(family)
    print(transformers.__version__, family, "read by, given by:", found, "the first is the embeddings:", begins)
    inputs = [[[n], [n - 1] if n else []] for n in range(4)] + [[[], []]]
    outputs = [[[n + 1] if n < 3 else [], [n]] for n in range(4)] + [[[], []]]
    so &= found == (outputs if family in late else inputs) and begins == (family not in late)
sys.exit(not so)
PYTHON

python3 -m venv "$folder/env"
for release in 5.23.0 5.24.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 "transformers==$release"
    "$folder/env/bin/python" -W ignore "$folder/check.py"
done
