#!/usr/bin/env bash
# transformers 5.23.0 and 5.24.0: weights that are saved in shards over a single file are not the ones that are loaded.
#
# save_pretrained removes shards of an earlier save, but not an earlier model.safetensors. from_pretrained looks for that
# file first, and reads no index beside it. So a model that was trained further, and is saved in shards into the folder
# of its earlier self, comes back as that self. It happens where a model grew past max_shard_size (50GB by default), or
# where the second save names a smaller one, as jobs do that save for hosts of little memory. Neither call says a word.
# The other way round, a single file over shards, the shards go and the new weights are loaded.
# Expected: what was saved last is loaded, or the save refuses.
# Seen, with embeddings of ones saved first and of twos saved next into the same folder:
#   first save    second save   loaded
#   single file   shards        1.0
#   shards        single file   2.0
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys
import tempfile

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=64)
model = LlamaForCausalLM(LlamaConfig(**sizes))
single, shards = {}, {"max_shard_size": "20KB"}
found = []
print("transformers", transformers.__version__)
for first, second in ((single, shards), (shards, single)):
    with tempfile.TemporaryDirectory() as place:
        for value, how in ((1.0, first), (2.0, second)):
            with torch.no_grad():
                model.model.embed_tokens.weight.fill_(value)
            model.save_pretrained(place, **how)
        loaded = LlamaForCausalLM.from_pretrained(place).model.embed_tokens.weight
        found.append(loaded.unique().tolist())
        print("shards" if first else "single file", "then", "shards" if second else "single file", found[-1])
sys.exit(found != [[1.0], [2.0]])
PYTHON

python3 -m venv "$folder/env"
for release in 5.23.0 5.24.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 "transformers==$release"
    "$folder/env/bin/python" -W ignore "$folder/check.py"
done
