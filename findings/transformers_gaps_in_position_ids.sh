#!/usr/bin/env bash
# transformers 5.23.0 and 5.24.0: a gap in position_ids cuts attention there, but only with use_cache=False.
#
# Without an attention_mask, and without a cache, the mask is made from position_ids: wherever they do not rise by
# exactly 1, a new text is taken to begin, which sees nothing before it. That is meant for packed texts, 0 1 2 0 1 2. It
# also strikes one text with a gap, as when tokens were dropped and the rest keep their places, or when positions are
# stretched: with 0 2 4 6 every token sees itself alone. use_cache=True, the default, makes an empty cache first, and
# then nothing is cut: neither at gaps nor between packed texts, which read one another.
# Expected: use_cache changes no logits, and causal attention does not end at a gap.
# Seen on a Llama, 8 tokens (does each call equal causal attention over all, by attention_mask of ones?):
#   positions                use_cache=True   use_cache=False
#   5 6 7 8 9 10 11 12       yes              yes
#   0 1 2 3 8 9 10 11        yes              no: the last four equal a text of their own
#   0 1 2 3 0 1 2 3 packed   yes (!)          no: the last four equal a text of their own
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
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
ids = torch.randint(3, 64, (1, 8))
found = []
print("transformers", transformers.__version__)
for places in ([5, 6, 7, 8, 9, 10, 11, 12], [0, 1, 2, 3, 8, 9, 10, 11], [0, 1, 2, 3, 0, 1, 2, 3]):
    places = torch.tensor([places])
    with torch.no_grad():
        causal = model(ids, position_ids=places, attention_mask=torch.ones_like(ids)).logits
        alone = model(ids[:, 4:], position_ids=places[:, 4:], attention_mask=torch.ones_like(ids[:, 4:])).logits
        for use_cache in (True, False):
            logits = model(ids, position_ids=places, use_cache=use_cache).logits
            equal = torch.allclose(logits, causal, atol=1e-4)
            cut = torch.allclose(logits[:, 4:], alone, atol=1e-4)
            print(*places[0].tolist(), "use_cache", use_cache, "equals causal:", equal, "last four alone:", cut)
            found += [(equal, cut)]
sys.exit(found != [(True, False), (True, False), (True, False), (False, True), (True, False), (False, True)])
PYTHON

python3 -m venv "$folder/env"
for release in 5.23.0 5.24.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 "transformers==$release"
    "$folder/env/bin/python" -W ignore "$folder/check.py"
done
