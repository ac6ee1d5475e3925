#!/usr/bin/env bash
# transformers 5.23.0 and 5.24.0: Trainer with gradient accumulation trains mixtures of experts with a router loss as
# many times as large as batches are accumulated.
#
# Mixtral, Qwen3-MoE and their kind add router_aux_loss_coef times a loss that balances the experts. Trainer hands the
# model the number of tokens of the whole step. By it the model divides the sum of the cross-entropy, and Trainer then
# does not divide by the number of batches any more. But the router's loss is a mean of each batch, and is added up
# undivided: with 8 batches a step router_aux_loss_coef counts 8 times. So the same data, cut into smaller batches for
# want of memory, balance experts harder, at the cost of the language model's loss. No error, no warning.
# Expected: accumulation changes neither the gradient nor the loss, as without the router's loss it does not.
# Seen with 8 equal rows in one step, so that each batch has the router's loss of all (the router's part of gradient
# and logged loss, as a multiple of that by autograd from one batch of 8 rows; the same for both models):
#   rows in a batch, batches in a step     8, 1   4, 2   2, 4   1, 8
#   router's part                          1      2      4      8
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import sys

import torch
import transformers
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers import PrinterCallback, Trainer, TrainingArguments

transformers.logging.set_verbosity_error()
SIZES = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, vocab_size=64, num_experts_per_tok=2)
HEADS = dict(num_attention_heads=4, num_key_value_heads=4)
MODELS = {
    "Mixtral": (MixtralForCausalLM, MixtralConfig, dict(num_local_experts=4)),
    "Qwen3-MoE": (Qwen3MoeForCausalLM, Qwen3MoeConfig, dict(num_experts=4, moe_intermediate_size=32, head_dim=8)),
}
tokens = torch.randint(3, 64, (12,), generator=torch.Generator().manual_seed(0))
row = {"input_ids": tokens, "labels": tokens}


def language_model(name, coefficient):
    torch.manual_seed(0)
    model, config, more = MODELS[name]
    router = dict(output_router_logits=True, router_aux_loss_coef=coefficient)
    return model(config(**SIZES, **HEADS, **more, **router))


def by_autograd(name, coefficient):
    """Gradient as one vector, and loss, of all rows in one batch."""
    model = language_model(name, coefficient)
    loss = model(**{column: values.repeat(8, 1) for column, values in row.items()}).loss
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), loss.item()


def by_trainer(name, coefficient, rows, batches):
    """The same from one step of SGD with a rate of 1."""
    model = language_model(name, coefficient)
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    plain = dict(optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0, max_steps=1)
    quiet = dict(report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, logging_steps=1)
    cut = dict(per_device_train_batch_size=rows, gradient_accumulation_steps=batches)
    arguments = TrainingArguments(output_dir=sys.argv[1], **plain, **quiet, **cut)
    trainer = Trainer(model, arguments, train_dataset=[row] * 8)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    after = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return before - after, next(float(log["loss"]) for log in trainer.state.log_history if "loss" in log)


print("transformers", transformers.__version__)
so = True
for name in MODELS:
    (whole, loss), (without, loss_without) = by_autograd(name, 0.1), by_autograd(name, 0.0)
    for rows, batches in ((8, 1), (4, 2), (2, 4), (1, 8)):
        (made, logged), (plain, logged_plain) = (by_trainer(name, c, rows, batches) for c in (0.1, 0.0))
        part = ((made - plain) @ (whole - without) / (whole - without).square().sum()).item()
        logged_part = (logged - logged_plain) / (loss - loss_without)
        print(f"{name:10}{rows} rows x {batches}: router's part {part:.3f}, logged {logged_part:.3f}")
        same = torch.allclose(plain, without, atol=1e-5) and abs(logged_plain - loss_without) < 1e-4
        so = so and same and abs(part - batches) < 0.01 and abs(logged_part - batches) < 0.02
sys.exit(not so)
PYTHON

python3 -m venv "$folder/env"
for release in 5.23.0 5.24.0; do
    packages=(torch==2.13.0 accelerate==1.15.0 "transformers==$release")
    "$folder/env/bin/pip" install -q --disable-pip-version-check "${packages[@]}"
    "$folder/env/bin/python" -W ignore "$folder/check.py" "$folder/run"
done
