#!/usr/bin/env bash
# circuit-tracer 0.5.0: a cross-layer transcoder with a skip connection cannot be called as a module.
#
# CrossLayerTranscoder has the argument skip_connection, and its decode(features, inputs) adds the skip connection.
# forward(inputs) encodes, and then calls decode without the inputs, which decode then asks for.
# Expected: clt(x) gives what clt.decode(clt.encode(x), x) gives, as it does for a SingleLayerTranscoder with a skip.
# Seen: AssertionError "Transcoder has skip connection but no input_acts were provided"; decode with inputs works, and
# without a skip connection the call works.
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check circuit-tracer==0.5.0 torch==2.13.0 transformers==4.57.3 transformer-lens==3.2.1
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

import torch
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder

layers, n_features, d_model, tokens = 2, 6, 4, 3


def made(skip):
    clt = CrossLayerTranscoder(
        layers, n_features, d_model, activation_function="relu", skip_connection=skip, lazy_decoder=False, dtype=torch.float32
    )
    for parameter in clt.parameters():
        torch.nn.init.normal_(parameter)
    return clt


x = torch.randn(layers, tokens, d_model)
with torch.no_grad():
    plain = made(False)
    works_without = torch.equal(plain(x), plain.decode(plain.encode(x)))
    clt = made(True)
    decoded = clt.decode(clt.encode(x), x)
    try:
        clt(x)
        says = "no error"
    except AssertionError as error:
        says = str(error)
print("circuit-tracer", importlib.metadata.version("circuit-tracer"))
print("without a skip connection the call works:", works_without)
print("decode with inputs gives", tuple(decoded.shape))
print("the call with a skip connection says:", says)
sys.exit(not (works_without and decoded.shape == x.shape and "no input_acts were provided" in says))
PYTHON
