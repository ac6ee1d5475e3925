"""Writing an SAE in the format of another project: `export_sae`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfsae import guests
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.interop import (
    clt_training_writer,
    gemma_scope_2_writer,
    llamascopium_writer,
    saelens_writer,
    sparsify_writer,
)
from hfsae.suggestions import did_you_mean

# Formats that hold one SAE a folder.
_WRITERS: dict[str, Callable[..., Path]] = {
    "clt-training": clt_training_writer.write,
    "gemma-scope-2": gemma_scope_2_writer.write,
    "llamascopium": llamascopium_writer.write,
    "saelens": saelens_writer.write,
    "sparsify": sparsify_writer.write,
}


def export_sae(sae: SparseAutoencoder, folder: str | os.PathLike, format: str, **options: Any) -> Path:
    """Writes an SAE so that another project loads it, with the same features and reconstructions.

    * `"saelens"`: `cfg.json` and `sae_weights.safetensors`, as SAELens 6 loads them. TopK is written with unit decoder
      rows, as SAELens makes it; all others keep the values of their features. Takes `hook_name` and `hook_name_out`,
      TransformerLens' names of the places, where the config does not tell them.
    * `"clt-training"`: cross-layer transcoders of topk, for EleutherAI's clt-training.
    * `"gemma-scope-2"`: SAEs and transcoders with thresholds, also cross-layer transcoders. Of crosscoders those whose
      features read one place each.
    * `"llamascopium"`: SAEs, transcoders, crosscoders and cross-layer transcoders. Takes `hook_points` and
      `hook_points_out`, lists of TransformerLens' names. `as_batchtopk=True` writes one of batch_topk as it is trained
      there, without a threshold.
    * `"sparsify"`: a TopK SAE as sparsify and delphi load it, in a subfolder called after the hooked module.
    * Whatever other installed packages offer (entry points `hfsae.formats` whose object has `write`).

    Args:
        sae: The SAE; it is not changed. Its scales are folded into the written weights.
        folder: Where to; made if missing.
        format: Which of these.
        **options: Of the format.

    Returns:
        The folder that holds the SAE.

    Raises:
        ValueError: If there is no such format, or it has nothing that computes the same; nothing is written then.

    Example:
        >>> export_sae(sae, "for_saelens", "saelens")  # doctest: +SKIP
        PosixPath('for_saelens')
    """
    return _writer(format)(sae, folder, **options)


def export_formats() -> list[str]:
    """The formats that `export_sae` writes; nothing of other packages' is imported, so some may only be read."""
    return sorted({*_WRITERS, *guests.names(guests.FORMATS)})


def _writer(format: str) -> Callable[..., Path]:
    if format in _WRITERS:
        return _WRITERS[format]
    guest = guests.load_guest(guests.FORMATS, format)
    if guest is None:
        known = export_formats()
        raise ValueError(f"there is no format {format!r} to write: {', '.join(known)}.{did_you_mean(format, known)}")
    if not hasattr(guest, "write"):
        raise ValueError(f"the format {format!r} can be read, but not written.")
    return guest.write
