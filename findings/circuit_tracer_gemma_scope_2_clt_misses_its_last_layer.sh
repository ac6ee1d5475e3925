#!/usr/bin/env bash
# circuit-tracer 0.5.0: load_gemma_scope_2_clt reads every layer of a cross-layer transcoder but the last.
#
# Gemma Scope 2 holds a cross-layer transcoder as a file for each layer: w_enc (d_in, n), b_enc (n,), threshold (n,),
# w_dec (n, layers, d_in) and b_dec (d_in,). The function gets their paths by layer, 0 to L - 1, and counts layers by
# `range(max(paths))`, which ends at L - 2. The decoders still have L targets, so nothing that it is given can load.
# Seen, with three layers of five features: RuntimeError, "size mismatch for W_dec.0: copying a param with shape
# torch.Size([5, 3, 4]) from checkpoint, the shape in current model is torch.Size([5, 2, 4])". With a copy of the last
# file under one more layer it loads, all three layers with the right weights: only the count is wrong.
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check circuit-tracer==0.5.0 torch==2.13.0 transformers==4.57.3 transformer-lens==3.2.1
cd "$folder"
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from circuit_tracer.transcoder.cross_layer_transcoder import load_gemma_scope_2_clt
from safetensors.torch import save_file

layers, n_features, d_in = 3, 5, 4
paths, encoders = {}, []
for layer in range(layers):
    tensors = {
        "w_enc": torch.randn(d_in, n_features),
        "b_enc": torch.zeros(n_features),
        "threshold": torch.ones(n_features),
        "w_dec": torch.randn(n_features, layers, d_in),
        "b_dec": torch.zeros(d_in),
    }
    paths[layer] = f"layer_{layer}.safetensors"
    encoders.append(tensors["w_enc"].T)
    save_file(tensors, paths[layer])


def load(paths):
    return load_gemma_scope_2_clt(paths, device=torch.device("cpu"), dtype=torch.float32)


print("circuit-tracer", importlib.metadata.version("circuit-tracer"))
try:
    load(paths)
    says = "no error"
except RuntimeError as error:
    says = str(error)
print(says)
with_one_more = load(paths | {layers: paths[layers - 1]})
right = torch.equal(with_one_more.W_enc, torch.stack(encoders))
print(f"with one more file: {with_one_more.n_layers} layers, weights {'right' if right else 'wrong'}")
sys.exit(not ("size mismatch for W_dec.0" in says and "[5, 2, 4]" in says and with_one_more.n_layers == layers and right))
PYTHON
