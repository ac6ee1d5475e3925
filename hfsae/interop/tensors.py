"""Weights files by their kind: safetensors, NumPy archives, and pickles that hold nothing but plain data."""

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfsae import storage

PICKLES = (".pt", ".pth", ".bin")
WEIGHTS_FILES = (".safetensors", ".npz", *PICKLES)


def read_weights(path: Path, source: str) -> dict[str, Any]:
    """The content of a weights file, on the CPU.

    Args:
        path: A `.safetensors`, `.npz`, `.pt`, `.pth` or `.bin` file.
        source: What errors call the SAE.

    Raises:
        OSError: If it is damaged, empty, or something else in the place of weights.
        ValueError: If the file is of another kind, or holds no named tensors. Likewise if it is a pickle of something
            else than tensors and plain values, none of which is run.
    """
    if path.suffix == ".safetensors":
        return storage.read_tensors(path)
    if path.suffix == ".npz":
        return _archive(path, source)
    if path.suffix in PICKLES:
        return _plain_pickle(path, source)
    raise ValueError(f"{path.name} of {source} is no weights file: expected .safetensors, .npz, .pt or .pth.")


def names_of_tensors(path: Path) -> set[str]:
    """The names of the tensors in a safetensors file, from its header."""
    return set(storage.read_header(path))


def _archive(path: Path, source: str) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(_plain(arrays, name, f"{path.name} of {source}")) for name in arrays.files}
    except _PickledArrayError as error:
        raise ValueError(str(error)) from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, AttributeError, NotImplementedError) as error:
        raise storage.damaged(path, error) from error
    except TypeError as error:
        raise ValueError(f"{path.name} of {source} holds arrays that are no tensors: {error}") from error


class _PickledArrayError(Exception):
    """An archive holds an array that would have to be unpickled."""


def _plain(arrays: Any, name: str, file: str) -> np.ndarray:
    try:
        return arrays[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise _PickledArrayError(
            f"{file} holds a pickled array, {name!r}, which is never unpickled ({error})"
        ) from error


def _plain_pickle(path: Path, source: str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, OSError) or not path.stat().st_size or not _begins_like_a_pickle(path):
            raise storage.damaged(path, error) from error
        raise ValueError(
            f"{path.name} of {source} was refused: it is damaged, or holds something else than tensors and plain "
            f"values ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} of {source} holds a {type(content).__name__}, expected named tensors.")
    return content


def _begins_like_a_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
