#!/usr/bin/env bash
# transformers 5.23.0 and 5.24.0: MiniMax with beam search and a cache continues beams from the states of other beams.
#
# After each token beam search reorders the cache, so that every beam that stays has what it has read. MiniMax keeps
# the states of its lightning attention in a list of its own, beside the cache's layers. What repeats a cache for
# beams knows of that list, what reorders it does not. So after a reordering a beam has keys and values of its own, and
# states of whichever beam stood there before. Scores are then those of no text at all. No error, no warning.
# Expected: generate gives a sequence the score that a forward pass gives it, and use_cache changes neither.
# Seen with random weights, two prompts, 4 beams, 12 tokens (scores are means of log-probabilities):
#                             sequences_scores    forward pass over the same    sequences as without a cache
#   MiniMax, with a cache     -2.206, -2.540      -2.186, -2.750                other ones
#   MiniMax, without          -1.961, -2.363      -1.961, -2.363
#   Qwen3-Next, with          -2.519, -2.387      -2.519, -2.387                the same
# Qwen3-Next's linear attention has its states in the cache's layers. Greedy search is right with both.
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
sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, vocab_size=97)
own = dict(num_attention_heads=4, head_dim=16, num_key_value_heads=2, eos_token_id=None)
linear = dict(linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16)
experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32)
families = {
    "minimax": dict(num_local_experts=4, num_experts_per_tok=2),
    "qwen3_next": dict(linear, **experts, layer_types=["linear_attention", "full_attention"] * 2),
}
prompts = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def built(family):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **own, **families[family])).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return model


def searched(model, use_cache, beams):
    how = dict(do_sample=False, num_beams=beams, max_new_tokens=12, use_cache=use_cache)
    told = dict(return_dict_in_generate=True, output_scores=True)
    return model.generate(prompts, attention_mask=torch.ones_like(prompts), **how, **told)


@torch.no_grad()
def by_forward(model, sequences):
    likely = model(sequences, use_cache=False).logits.log_softmax(-1)
    chosen = likely[:, :-1].gather(2, sequences[:, 1:, None])[..., 0]
    return chosen[:, prompts.shape[1] - 1 :].mean(1)


so = True
for family in families:
    model = built(family)
    with_cache, without = searched(model, True, 4), searched(model, False, 4)
    same = torch.equal(with_cache.sequences, without.sequences)
    greedy = torch.equal(searched(model, True, 1).sequences, searched(model, False, 1).sequences)
    apart = []
    for found in (with_cache, without):
        measured = by_forward(model, found.sequences)
        apart.append(float((found.sequences_scores - measured).abs().max()))
        print(transformers.__version__, family, found.sequences_scores.tolist(), "by forward", measured.tolist())
    print("  same sequences:", same, "greedy:", greedy)
    right = family != "minimax"
    so &= apart[1] < 1e-4 and greedy and same == right and (apart[0] < 1e-4 if right else apart[0] > 0.02)
sys.exit(not so)
PYTHON

python3 -m venv "$folder/env"
for release in 5.23.0 5.24.0; do
    "$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 "transformers==$release"
    "$folder/env/bin/python" -W ignore "$folder/check.py"
done
