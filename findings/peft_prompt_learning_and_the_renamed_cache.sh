#!/usr/bin/env bash
# peft 0.21.2 on transformers 5.24.0: PeftModel.generate with a learnt prompt or prefix computes something else.
#
# transformers 5.24.0 calls the cache `cache` where 5.23.0 called it `past_key_values`; PEFT's
# `prepare_inputs_for_generation` looks for the old name, finds no cache, and takes every step for the first one.
# Seen (rows that the first layer sees at each step, 4 tokens and 3 virtual ones; tokens by a loop of plain calls):
#   transformers 5.23.0  prompt [7, 1, 1, 1, 1]  generate equals the loop; prefix: equals the loop
#   transformers 5.24.0  prompt [7, 4, 4, 4, 4]  generate differs; prefix: generate equals the model without its prefix
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys
import warnings

import torch
import transformers
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

warnings.simplefilter("ignore")
ids = torch.tensor([[1, 5, 9, 13]])
wanted = {"5.23.0": ([7, 1, 1, 1, 1], True, True, False), "5.24.0": ([7, 4, 4, 4, 4], False, False, True)}


def adapted(kind):
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=64)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, bos_token_id=1, eos_token_id=None, pad_token_id=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model = get_peft_model(model, kind(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def generated(model):
    return model.generate(input_ids=ids, max_new_tokens=5, do_sample=False).tolist()


def by_plain_calls(model):
    tokens = ids
    with torch.no_grad():
        for _ in range(5):
            tokens = torch.cat([tokens, model(input_ids=tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens.tolist()


prompt, prefix, rows = adapted(PromptTuningConfig), adapted(PrefixTuningConfig), []
first = prompt.get_base_model().model.layers[0]
hook = first.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
tokens = generated(prompt)
hook.remove()
without = prefix.get_base_model().generate(input_ids=ids, max_new_tokens=5, do_sample=False).tolist()
found = rows, tokens == by_plain_calls(prompt), generated(prefix) == by_plain_calls(prefix), generated(prefix) == without
print(transformers.__version__, *found)
sys.exit(found != wanted[transformers.__version__])
PYTHON

for release in 5.23.0 5.24.0; do
    python3 -m venv "$folder/$release"
    "$folder/$release/bin/pip" install -q --disable-pip-version-check \
        torch==2.13.0 "transformers==$release" peft==0.21.2
    "$folder/$release/bin/python" "$folder/check.py"
done
