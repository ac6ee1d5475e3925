"""What all writers share: an SAE brought into the form that other projects can hold, and files that appear whole."""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.autoencoder import folding
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.saving import files_at_once
from hfsae.storage import write_tensors

# How far norms of equally long rows may lie apart in a dtype.
_ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@torch.no_grad()
def plain_copy(
    sae: SparseAutoencoder,
    *,
    subtract_b_dec: bool | None = None,
    keep_decoder_norm: bool = False,
    unit_rows: bool = False,
) -> SparseAutoencoder:
    """A copy with the same features and reconstructions whose scales are 1.

    Args:
        sae: The SAE.
        subtract_b_dec: Whether the copy subtracts `b_dec`, whose effect then moves into or out of the encoder's
            biases; None leaves it as it is.
        keep_decoder_norm: Whether `rescale_by_decoder_norm` may stay where no scale has to be folded.
        unit_rows: Whether rows of `W_dec` get unit norm, and features the unit that goes with it, where all rows have
            one norm.
    """
    plain = copy.deepcopy(sae)
    if subtract_b_dec is not None:
        folding.subtract_b_dec(plain, subtract_b_dec)
    scales = [float(tensor) for name, tensor in plain.named_buffers() if name in SparseAutoencoder._float32_tensors]
    if unit_rows:
        if any(scale != 1 for scale in scales):
            folding.fold_input_scale(plain, keep="unit_rows")
        plain.config.rescale_by_decoder_norm = True
        folding.fold_decoder_norm(plain)
    elif any(scale != 1 for scale in scales):
        folding.fold_input_scale(plain, keep="features")
    elif not keep_decoder_norm:
        folding.fold_decoder_norm(plain)
    return plain


def rows_of_one_norm(sae: SparseAutoencoder) -> bool:
    """Whether all rows of the decoder are equally long up to rounding, those of zeros left out."""
    norms = sae.W_dec.float().norm(dim=1)
    norms = norms[norms > 0]
    return len(norms) > 0 and bool(norms.max() / norms.min() < 1 + _ROUNDING[sae.W_dec.dtype])


def theirs(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Our tensors under their names; `names` as readers have it: ours to theirs, `".T"` for a transposed matrix."""
    return {
        name.removesuffix(".T"): (tensors[ours].T if name.endswith(".T") else tensors[ours]).detach().contiguous()
        for ours, name in names.items()
    }


def write_files(
    folder: str | os.PathLike, weights: str, tensors: Mapping[str, Tensor], config: Any, called: str = "cfg.json"
) -> Path:
    """Writes a config and a weights file, both or neither."""
    with files_at_once(Path(folder)) as beside:
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_tensors(beside / weights, stored)
        (beside / called).write_text(json.dumps(config, indent=2))
    return Path(folder)
