#!/usr/bin/env bash
# transformers 5.23.0 and 5.24.0: with rope_type "dynamic" or "longrope", what a model says of a text depends on other
# texts: on longer ones that it read before, and on longer ones in the same batch.
#
# Both types choose the rotary frequencies anew in each call, from the largest position of the whole batch, and keep them
# in the module. "dynamic" keeps the frequencies of the longest text so far, until a text within the original length comes.
# So a text longer than that is read with those of an earlier, longer one. "longrope" (Phi-3, Phi-4-mini) takes its long
# factors for all rows if one row is longer than the original length. So with both a short text has other activations
# beside a long one, under a right attention mask and right padding. There is no cache in play, and no warning.
# Expected: in eval mode the same text has the same logits, whatever was read before or stands in other rows.
# Seen, original length 16 (largest difference of a logit):
#                                                 default   dynamic   longrope
#   24 tokens, before and after a text of 60         0         2.7       0
#   the same once more, after a text of 8            0         0         0
#   10 tokens, alone and beside a row of 30          9e-6      2.4       3.6
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=64)
KINDS = {
    "default": {},
    "dynamic": {"factor": 2.0},
    "longrope": {
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 4.0, 8.0],
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}
print("transformers", transformers.__version__)
right = True
for kind, more in KINDS.items():
    torch.manual_seed(0)
    rope = {"rope_type": kind, "rope_theta": 10000.0, **more}
    longest = 16 if kind == "dynamic" else 64
    config = LlamaConfig(**SIZES, max_position_embeddings=longest, rope_parameters=rope, initializer_range=0.3)
    model = LlamaForCausalLM(config).eval()
    text, longer, short = (torch.randint(3, 64, (1, n)) for n in (24, 60, 8))

    @torch.no_grad()
    def logits(ids, **more):
        return model(ids, use_cache=False, **more).logits

    first = logits(text)
    repeated = (logits(text) - first).abs().max().item()
    logits(longer)
    after_longer = (logits(text) - first).abs().max().item()
    logits(short)
    after_short = (logits(text) - first).abs().max().item()

    alone = logits(text[:, :10])
    batch = torch.cat([torch.nn.functional.pad(text[:, :10], (0, 20)), longer[:, :30]])
    mask = torch.arange(30) < torch.tensor([[10], [30]])
    beside = (logits(batch, attention_mask=mask.long())[:1, :10] - alone).abs().max().item()
    print(f"{kind}: after a longer text {after_longer:.2g}, after a short one {after_short:.2g}, beside {beside:.2g}")
    right &= repeated == after_short == 0
    right &= after_longer > 1 if kind == "dynamic" else after_longer == 0
    right &= beside < 1e-4 if kind == "default" else beside > 1
sys.exit(not right)
PYTHON

python3 -m venv "$folder/env"
for release in 5.23.0 5.24.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 "transformers==$release"
    "$folder/env/bin/python" -W ignore "$folder/check.py"
done
