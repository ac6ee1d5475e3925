#!/usr/bin/env bash
# PEFT 0.21.2 says of every LoRA adapter with lora_bias=True that it "has invalid shape" when it is saved.
#
# What is run: a tiny Llama of transformers 5.23.0 gets LoraConfig(r=1, lora_bias=True) on one matrix, and is saved in
# an ordinary process: no DeepSpeed, no FSDP, one device.
# What is expected: no warning. The bias of lora_B has one axis, as biases have, and the saved adapter is whole: loaded
# again, it gives the same logits.
# What is seen: "PeftWarning: Adapter 'default': 1 LoRA tensor(s) have invalid shape: ...lora_B.bias:(16,). A 1-D or
# zero-sized lora_A / lora_B tensor indicates that DeepSpeed ZeRO-3 / FSDP shards were not gathered before
# save_pretrained() and are therefore incomplete."
#
# Exits with 1 if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 peft==0.21.2
cat > "$place/run.py" <<'PYTHON'
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
base = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
adapted = get_peft_model(base, LoraConfig(r=1, lora_bias=True, target_modules=["down_proj"]))
torch.nn.init.normal_(base.get_submodule("model.layers.0.mlp.down_proj").lora_B["default"].bias)
ids = torch.tensor([[1, 2, 3]])
expected = adapted.eval()(ids).logits
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    adapted.save_pretrained(sys.argv[1])
again = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
again.load_state_dict(state)
whole = torch.equal(PeftModel.from_pretrained(again, sys.argv[1]).eval()(ids).logits, expected)
said = [str(one.message) for one in caught if "invalid shape" in str(one.message)]
print("the saved adapter is whole:", whole)
print("warned:", said[0] if said else "no")
sys.exit(0 if whole and said else 1)
PYTHON
"$place/venv/bin/python" "$place/run.py" "$place/adapter"
