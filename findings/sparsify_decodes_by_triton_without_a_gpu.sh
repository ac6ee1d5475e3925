#!/usr/bin/env bash
# sparsify 1.3.3 (eai-sparsify) decodes by a Triton kernel wherever triton can be imported, CPU tensors included.
#
# It asks at import whether the package is there, not whether there is a GPU or where the tensors lie. torch's wheels for
# CUDA bring triton, so on a machine without a GPU a plain `pip install eai-sparsify` gives SAEs that cannot decode.
# Seen with torch 2.13.0 and triton 3.7.1 on a machine without a GPU:
#   encode: 4 features a token
#   decode: RuntimeError: 0 active drivers ([]). There should only be one.
#   decode with SPARSIFY_DISABLE_TRITON=1: (2, 8)
# Exits with 0 while decoding CPU tensors fails with triton installed and works without it, with 1 when it does not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check torch==2.13.0 triton==3.7.1 transformers==5.23.0 \
    accelerate==1.15.0 datasets==5.2.0 einops simple-parsing natsort schedulefree safetensors numpy
"$folder/env/bin/pip" install -q --disable-pip-version-check --no-deps eai-sparsify==1.3.3
cat > "$folder/decode.py" <<'PYTHON'
import os

os.environ["SPARSIFY_NO_COMPILE"] = "1"
import torch
from sparsify import SparseCoder, SparseCoderConfig

torch.manual_seed(0)
sae = SparseCoder(8, SparseCoderConfig(num_latents=32, k=4))
with torch.no_grad():
    encoded = sae.encode(torch.randn(2, 8))
    print(f"encode: {encoded.top_indices.shape[1]} features a token")
    try:
        print("decode:", tuple(sae.decode(encoded.top_acts, encoded.top_indices).shape))
    except RuntimeError as error:
        print(f"decode: RuntimeError: {error}")
PYTHON
with_triton=$(env -u SPARSIFY_DISABLE_TRITON CUDA_VISIBLE_DEVICES= "$folder/env/bin/python" -W ignore "$folder/decode.py")
without=$(SPARSIFY_DISABLE_TRITON=1 CUDA_VISIBLE_DEVICES= "$folder/env/bin/python" -W ignore "$folder/decode.py")
printf '%s\n\n%s\n' "$with_triton" "$without"
grep -q "encode: 4 features" <<<"$with_triton" && grep -q "decode: RuntimeError" <<<"$with_triton" && grep -q "decode: (2, 8)" <<<"$without"
