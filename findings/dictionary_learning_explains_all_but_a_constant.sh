#!/usr/bin/env bash
# dictionary-learning 0.1.0: evaluate() says that all variance is explained where all reconstructions are off by a vector.
#
# frac_variance_explained is 1 - var(x - x_hat) / var(x). The variance of the error is taken about the error's own mean,
# which drops out. So an SAE whose decoder bias is wrong, or was lost on the way, has the figure of the right one, up to
# 1.0. l2_loss, cossim and l2_ratio do see it. sparsify's fvu takes the error itself, so the two are not comparable.
# Expected: one minus the share of the squared error in the variance, which is far below 0 here.
# Seen with an SAE that gives back every activation, and the same with 3 added to each entry of its decoder bias:
#             frac_variance_explained   l2_loss   by hand, 1 - sum of squared errors / sum of squares about the mean
#   right     1.0                       0         1.0
#   off by 3  1.0                       12        -8
# No warning is given. The package asks for an nnsight below 0.4, which evaluate() does not need: it is installed alone.
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/check.py" <<'PYTHON'
import importlib.metadata
import sys

import torch
from dictionary_learning.dictionary import AutoEncoderNew
from dictionary_learning.evaluation import evaluate

D = 16
torch.manual_seed(0)
x = torch.randn(4096, D)
sae = AutoEncoderNew(D, 2 * D)
both_signs = torch.cat([torch.eye(D), -torch.eye(D)])  # relu(x) - relu(-x) is x
with torch.no_grad():
    sae.encoder.weight.copy_(both_signs)
    sae.decoder.weight.copy_(both_signs.T)
print("dictionary-learning", importlib.metadata.version("dictionary-learning"))
right = True
for off, l2_loss, least, most in ((0.0, 0.0, 0.999, 1.001), (3.0, 12.0, -9.0, -7.0)):
    with torch.no_grad():
        sae.decoder.bias.fill_(off)
        error = sae(x) - x
        by_hand = 1 - float(error.square().sum() / (x - x.mean(0)).square().sum())
    found = evaluate(sae, iter([x]), device="cpu")
    said = found["frac_variance_explained"]
    print(f"off by {off:g}: frac_variance_explained {said:.4f}, l2_loss {found['l2_loss']:.3f}, by hand {by_hand:.3f}")
    right &= abs(said - 1) < 1e-4 and abs(found["l2_loss"] - l2_loss) < 1e-3 and least < by_hand < most
sys.exit(not right)
PYTHON

python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 nnsight==0.8.1 datasets==5.2.0 einops zstandard wandb
"$folder/env/bin/pip" install -q --disable-pip-version-check --no-deps dictionary-learning==0.1.0
"$folder/env/bin/python" -W ignore "$folder/check.py"
