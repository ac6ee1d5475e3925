"""Writes TopK SAEs and transcoders as sparsify saves them, which delphi interprets."""

import os
from pathlib import Path

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.registry import architecture_name
from hfsae.interop.foreign_names import canonical, module_path, transformer_lens
from hfsae.interop.sparsify import TENSORS, WEIGHTS
from hfsae.interop.writing import plain_copy, theirs, write_files
from hfsae.saving import write_json


def write(sae: SparseAutoencoder, folder: str | os.PathLike) -> Path:
    """Writes `layers.3.mlp/cfg.json`, `sae.safetensors` beside it and the run's `config.json`; see `export_sae`.

    Args:
        sae: The SAE; it is not changed. Its scales are folded into the written weights.
        folder: The folder above; made if missing.

    Returns:
        The folder of the SAE, called after the module.

    Raises:
        ValueError: If sparsify has nothing that computes the same, or calls the place by no name; nothing is written
            then.
    """
    config = sae.config
    if architecture_name(config) != "topk" or config.input_transform != "none" or config.d_out != config.d_in:
        raise ValueError(
            "sparsify holds TopK SAEs and transcoders of equal width on untransformed activations; this is a "
            f"{type(sae).__name__} with input_transform={config.input_transform!r}, d_in={config.d_in}, "
            f"d_out={config.d_out}."
        )
    module = module_of(sae)
    plain = plain_copy(sae, subtract_b_dec=not config.is_transcoder)
    names = {**TENSORS, "W_skip": "W_skip"} if config.skip else TENSORS
    settings = {
        "activation": config.activation,  # type: ignore[attr-defined]
        "expansion_factor": max(1, config.n_features // config.d_in),
        "normalize_decoder": True,
        "num_latents": config.n_features,
        "k": config.k,  # type: ignore[attr-defined]
        "multi_topk": config.multi_topk,  # type: ignore[attr-defined]
        "skip_connection": config.skip,
        "transcode": config.is_transcoder,
        "d_in": config.d_in,
    }
    written = write_files(Path(folder) / module, WEIGHTS, theirs(plain.state_dict(), names), settings)
    run = {"model": config.base_model, "ctx_len": config.context_length, "sae": settings}
    write_json(Path(folder) / "config.json", run)
    return written


def module_of(sae: SparseAutoencoder) -> str:
    """What sparsify calls the place: the module whose output is read, or through which a transcoder leads."""
    config = sae.config
    reads, writes = (canonical(place, config.base_model) for place in (config.hook_point, config.target_hook_point))
    if config.is_transcoder:
        if reads is None or writes is None or reads.removesuffix("input") != writes.removesuffix("output"):
            raise ValueError(
                f"sparsify's transcoders lead from a module's input to its output, not {reads} → {writes}."
            )
        return str(module_path(writes, config.base_model))
    role, layer = _residual(transformer_lens(reads, config.base_model))
    if role == "hook_resid_pre" and layer > 0:  # the block before gives it out
        reads = canonical(f"resid_post.{layer - 1}", config.base_model)
    if reads is None or not reads.endswith(".output"):
        raise ValueError(f"sparsify reads outputs of modules, and {config.hook_point} is none.")
    return str(module_path(reads, config.base_model))


def _residual(name: str | None) -> tuple[str, int]:
    """Role and layer of a TransformerLens name such as `blocks.8.hook_resid_pre`."""
    parts = (name or "").split(".")
    return (parts[2], int(parts[1])) if len(parts) == 3 else ("", 0)
