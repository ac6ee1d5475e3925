"""Weights files by their kind: safetensors, NumPy archives, and pickles that hold nothing but plain data."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file

PICKLES = (".pt", ".pth", ".bin")
WEIGHTS_FILES = (".safetensors", ".npz", *PICKLES)


def read_tensors(path: Path, source: str) -> dict[str, Any]:
    """The content of a weights file, on the CPU.

    Args:
        path: A `.safetensors`, `.npz`, `.pt`, `.pth` or `.bin` file.
        source: What errors call the SAE.

    Raises:
        ValueError: If the file is of another kind, holds no named tensors, or is a pickle of something else than
            tensors and plain values, none of which is run.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    if path.suffix in PICKLES:
        return _plain_pickle(path, source)
    raise ValueError(f"{path.name} of {source} is no weights file: expected .safetensors, .npz, .pt or .pth.")


def names_of_tensors(path: Path) -> set[str]:
    """The names of the tensors in a safetensors file, from its header."""
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def _plain_pickle(path: Path, source: str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path.name} of {source} was refused: it is damaged, or holds something else than tensors and plain "
            f"values ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} of {source} holds a {type(content).__name__}, expected named tensors.")
    return content
