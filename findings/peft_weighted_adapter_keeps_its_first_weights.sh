#!/usr/bin/env bash
# peft 0.21.2: add_weighted_adapter does nothing where the name is taken, so a scan of weights measures one mixture.
#
# Whoever looks for a good mixture of adapters calls add_weighted_adapter once for each set of weights, activates the
# mixture and measures it. From the second set on the call returns at once: the adapter of that name stays the first
# mixture, whatever adapters, weights and kinds of combination are asked for. So all points of the scan are equal, as
# if the weights did not matter. add_adapter refuses a name that is taken. Where delete_adapter is called in between,
# each mixture is the one that was asked for. IA3's add_weighted_adapter does the same. No error, no warning.
# Expected: the mixture that was asked for, or that the call is refused.
# Seen, logits of mixtures w a + (1 - w) b, which by "cat" is exact (which w they are those of):
#   asked for             1     0.5   0
#   under one name        1     1     1
#   deleted in between    1     0.5   0
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

WEIGHTS = (1.0, 0.5, 0.0)
METHODS = {
    "LoRA": (lambda: peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"]), {"combination_type": "cat"}),
    "IA3": (lambda: peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]), {}),
}
torch.manual_seed(0)
sizes = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=4, intermediate_size=32)
base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=64, **sizes)).state_dict()
ids = torch.arange(3, 11)[None]


def adapted(method):
    """A language model with adapters a and b."""
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=64, **sizes))
    model.load_state_dict(base)
    model = peft.get_peft_model(model, METHODS[method][0](), adapter_name="a")
    model.add_adapter("b", METHODS[method][0]())
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith((".a", ".b", ".a.weight", ".b.weight")):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def by_hand(method, w):
    """Logits with W + w (B A of a) + (1 - w) (B A of b), for IA3 with W scaled by the mixture of the vectors."""
    model = adapted(method)
    plain = LlamaForCausalLM(model.config)
    plain.load_state_dict(base)
    for layer, mixed in zip(plain.model.layers, model.base_model.model.model.layers, strict=True):
        weight, one = layer.self_attn.q_proj.weight, mixed.self_attn.q_proj
        if method == "LoRA":
            weight += sum(s * one.lora_B[x].weight @ one.lora_A[x].weight for x, s in (("a", w), ("b", 1 - w)))
        else:
            weight *= w * one.ia3_l["a"] + (1 - w) * one.ia3_l["b"]
    return plain.eval()(ids).logits


@torch.no_grad()
def scan(method, deleted):
    """For each pair of weights that is asked for, those whose logits the mixture has."""
    model, seen = adapted(method), []
    right = {w: by_hand(method, w) for w in WEIGHTS}
    for w in WEIGHTS:
        model.add_weighted_adapter(["a", "b"], [w, 1 - w], "mixture", **METHODS[method][1])
        model.set_adapter("mixture")
        logits = model(ids).logits
        seen.append([v for v in WEIGHTS if torch.allclose(logits, right[v], atol=1e-4)])
        if deleted:
            model.set_adapter("a")
            model.delete_adapter("mixture")
    return seen


print("peft", peft.__version__)
so = True
for method in METHODS:
    once, anew = scan(method, deleted=False), scan(method, deleted=True)
    print(method, "asked for", list(WEIGHTS), "under one name", once, "deleted in between", anew)
    so = so and once == [[1.0]] * 3 and anew == [[w] for w in WEIGHTS]
sys.exit(not so)
PYTHON
