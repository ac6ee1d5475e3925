#!/usr/bin/env bash
# transformers 5.24.0: Mamba's output offers its cache as `past_key_values`, and Mamba ignores it under that name.
#
# 5.24.0 calls the cache `cache`, where Mamba called it `cache_params` and others `past_key_values`. For the old names'
# sake every output answers to both, with the cache. Calls take the family's own old name alone, with a warning. Any
# other name is taken in among further keyword arguments, and nothing is made of it.
# So a loop that asks an output for past_key_values, and otherwise for cache_params, was right for both kinds until
# 5.23.0, where Mamba's output has no past_key_values. Now it finds them there and gives them back, and Mamba reads
# each token as if it were the first of a text. Likewise Llama with cache_params. No error, no warning.
# Expected: a model takes its cache under the name by which its output offers it.
# Seen, 10 tokens, then one with the cache under each name that the output has (does it equal one pass over all?):
#                                 cache   cache_params        past_key_values
#   5.24.0  Mamba, Mamba 2        yes     yes, and a warning  no
#   5.24.0  Jamba, Llama          yes     no                  yes, and a warning
#   5.23.0  Mamba, Mamba 2        -       yes                 -
#   5.23.0  Jamba, Llama          -       -                   yes
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys
import warnings

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
    "jamba": dict(heads, mamba_d_state=8, **few),
    "llama": heads,
}
names = ("cache", "cache_params", "past_key_values")
new = transformers.__version__ == "5.24.0"
ids = torch.randint(3, 97, (1, 11), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def by_name(family):
    """Under each name: None where the output has none; else whether the next token is right, and whether warned."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **families[family])).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape) / parameter.shape[-1] ** 0.5)
    whole, found = model(ids, use_cache=False).logits[:, -1], []
    for name in names:
        output = model(ids[:, :10], use_cache=True)
        kept = getattr(output, name, None)
        if kept is None:
            found.append(None)
            continue
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            following = model(ids[:, 10:], use_cache=True, **{name: kept}).logits[:, -1]
        found.append(((following - whole).abs().max().item() < 1e-4, any(name in str(one.message) for one in said)))
    return found


so, right, warned, wrong = True, (True, False), (True, True), (False, False)
for family in families:
    found = by_name(family)
    print(transformers.__version__, family, dict(zip(names, found, strict=True)))
    own_is_params = family in ("mamba", "mamba2")
    if new:
        so &= found == [right, *((warned, wrong) if own_is_params else (wrong, warned))]
    else:
        so &= found == [None, *((right, None) if own_is_params else (None, right))]
sys.exit(not so)
PYTHON

python3 -m venv "$folder/env"
for release in 5.23.0 5.24.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 "transformers==$release"
    "$folder/env/bin/python" "$folder/check.py"
done
