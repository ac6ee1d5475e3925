"""A format as somebody else would write it: k in `two_matrices.json`, weights in `two_matrices.safetensors`."""

import json
from pathlib import Path

from safetensors.torch import save_file

from hfsae import SAE
from hfsae.interop import ConvertedSAE, Source, renamed
from hfsae.interop.writing import plain_copy

CONFIG, WEIGHTS = "two_matrices.json", "two_matrices.safetensors"
NAMES = {"encoder.weight": "reads", "W_dec": "writes", "encoder.bias": "shift", "b_dec": "offset"}


def recognises(source: Source) -> bool:
    return CONFIG in source.listing


def read(source: Source) -> ConvertedSAE:
    tensors = renamed(source.tensors(WEIGHTS), NAMES, source)
    return ConvertedSAE("topk", tensors, {"k": source.json(CONFIG).whole("k"), "subtract_b_dec": True})


def write(sae: SAE, folder: str, *, note: str = "") -> Path:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors = plain_copy(sae).state_dict()
    save_file({theirs: tensors[ours] for ours, theirs in NAMES.items()}, path / WEIGHTS)
    (path / CONFIG).write_text(json.dumps({"k": sae.config.k, "note": note}))
    return path
