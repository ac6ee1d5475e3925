"""Reads with delphi what `export_delphi` and `export_sae` wrote.

    python delphi_loader.py EXPORT SPARSIFY_FOLDER HOOKPOINT LANGUAGE_MODEL ACTIVATIONS OUT

EXPORT holds one folder a module. ACTIVATIONS holds `x` (tokens, d). Writes OUT/delphi.safetensors: all entries
(`locations`, `activations`) and `tokens` as its dataset loads them, and `features` (tokens, n) of its sparse coder.
"""

import sys
from pathlib import Path

import torch
from delphi.config import ConstructorConfig, SamplerConfig
from delphi.latents.loader import LatentDataset
from delphi.sparse_coders.load_sparsify import load_sparsify_sparse_coders, sae_dense_latents
from embedded_tokenizer import tokenizer_of
from safetensors.torch import load_file, save_file


def main(export: str, folder: str, hookpoint: str, model: str, activations: str, out: str) -> None:
    """Loads both."""
    dataset = LatentDataset(export, SamplerConfig(), ConstructorConfig(), tokenizer=tokenizer_of(model))
    parts = [buffer.load() for buffer in dataset.buffers]
    coder = load_sparsify_sparse_coders(folder, [hookpoint], "cpu")[hookpoint]
    with torch.no_grad():
        features = sae_dense_latents(load_file(activations)["x"], coder)
    found = {
        "locations": torch.cat([part[0] for part in parts]),
        "activations": torch.cat([part[1] for part in parts]),
        "tokens": dataset.tokens,
        "features": features,
    }
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, Path(out) / "delphi.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
