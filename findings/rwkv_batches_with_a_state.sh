#!/usr/bin/env bash
# transformers 5.23.0 and 5.24.0: RWKV with a batch mixes its sequences up as soon as it goes on from a cached state.
#
# The second call of a cached decode gets one token for each of B sequences, and the states of the first call. The token
# before is then added as (B, d) to (B, 1, d), so that every sequence is combined with every other: logits come out as
# (B, B, vocabulary) instead of (B, 1, vocabulary), without an error, and `generate` with a batch and its cache, the
# default, gives other tokens than without. One sequence at a time is right, and so is use_cache=False.
# Seen with both releases: logits (3, 3, 64); with and without the cache a batch of three differs, a single one agrees.
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import RwkvConfig, RwkvForCausalLM

torch.manual_seed(0)
config = RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=64, context_length=64, eos_token_id=None)
model = RwkvForCausalLM(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    ids = torch.randint(3, 64, (3, 7))
    state = model(ids, use_cache=True).state
    shape = tuple(model(ids[:, :1], state=state, use_cache=True).logits.shape)


def agrees(ids):
    """Whether a greedy generation is the same with and without the state."""
    given = dict(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    return torch.equal(model.generate(**given, use_cache=True), model.generate(**given, use_cache=False))


found = shape, agrees(ids), agrees(ids[:1])
print(transformers.__version__, *found)
sys.exit(found != ((3, 3, 64), False, True))
PYTHON

for release in 5.23.0 5.24.0; do
    python3 -m venv "$folder/$release"
    "$folder/$release/bin/pip" install -q --disable-pip-version-check torch==2.13.0 "transformers==$release"
    "$folder/$release/bin/python" -W ignore "$folder/check.py"
done
