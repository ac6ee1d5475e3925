#!/usr/bin/env bash
# peft 0.21.2: adapter_names, which gives each row of a batch its own adapter, does nothing with IA3, LoHa and others.
#
# model(ids, adapter_names=["a", "b"]) reads the first row with adapter a and the second with b, and "__base__" stands
# for none. LoRA and RoAd do so, and DoRA says that it cannot. Of the other methods every PeftModel takes the argument
# out of the call and goes on without it: all rows are read with whichever adapter is active, rows for "__base__" too.
# So adapters that are compared in one batch score alike, and a baseline in the batch is none. generate does the same.
# No error, no warning.
# Expected: each row has the logits that its adapter gives alone, or the call is refused.
# Seen, a being active (whose logits rows for b and rows for the base model have):
#   LoRA, RoAd                                     b   the base model
#   IA3, LoHa, LoKr, VeRA, OFT, HRA, FourierFT     a   a
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import sys

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

TARGETS = dict(target_modules=["q_proj", "down_proj"])
METHODS = {
    "LoRA": lambda: peft.LoraConfig(r=4, **TARGETS),
    "RoAd": lambda: peft.RoadConfig(group_size=8, **TARGETS),
    "IA3": lambda: peft.IA3Config(feedforward_modules=["down_proj"], **TARGETS),
    "LoHa": lambda: peft.LoHaConfig(r=4, **TARGETS),
    "LoKr": lambda: peft.LoKrConfig(r=4, **TARGETS),
    "VeRA": lambda: peft.VeraConfig(r=4, **TARGETS),
    "OFT": lambda: peft.OFTConfig(oft_block_size=8, **TARGETS),
    "HRA": lambda: peft.HRAConfig(r=4, **TARGETS),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=16, **TARGETS),
}
ids = torch.arange(3, 11)[None]


def language_model():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=4, intermediate_size=32)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=64, **sizes)).eval()


@torch.no_grad()
def rows_of(method):
    """Whose logits rows for "b" and for the base model have, in a batch with a row for "a"."""
    alone = {"the base model": language_model()(ids).logits}
    model = peft.get_peft_model(language_model(), METHODS[method](), adapter_name="a")
    model.add_adapter("b", METHODS[method]())
    for name, parameter in model.named_parameters():
        if name.endswith((".a", ".b", ".a.weight", ".b.weight")):
            parameter.add_(torch.randn_like(parameter) * 0.5)
    for adapter in ("b", "a"):
        model.set_adapter(adapter)
        alone[adapter] = model.eval()(ids).logits
    assert all(not torch.allclose(alone[x], alone[y], atol=1e-3) for x, y in (("a", "b"), ("a", "the base model")))
    seen = []
    for wanted in ("b", "__base__"):
        row = model(ids.repeat(2, 1), adapter_names=["a", wanted]).logits[1:]
        like = [who for who, logits in alone.items() if torch.allclose(row, logits, atol=1e-5)]
        seen.append(*like or ["none of these"])
    return seen


print("peft", peft.__version__)
found = {method: rows_of(method) for method in METHODS}
for method, seen in found.items():
    print(f"{method:10}", *(f"{who:16}" for who in seen))
right = ["b", "the base model"]
sys.exit(any(seen != (right if method in ("LoRA", "RoAd") else ["a"] * 2) for method, seen in found.items()))
PYTHON
