"""Writes SAEs as SAELens 6 saves them."""

import copy
import os
from pathlib import Path
from typing import Any

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.registry import architecture_name
from hfsae.configuration import SAEConfig
from hfsae.interop.foreign_names import transformer_lens_names
from hfsae.interop.positions import kept_slice
from hfsae.interop.saelens import WEIGHTS, tensor_names
from hfsae.interop.writing import plain_copy, rows_of_one_norm, theirs, write_files

# The oldest version that reads this form; SAELens takes a config that names none for one of before version 6.
_FORMAT_VERSION = "6.0.0"

_ARCHITECTURES = {
    "standard": "standard",
    "topk": "topk",
    "abs_topk": "abstopk",
    "matching_pursuit": "matching_pursuit",
    "jumprelu": "jumprelu",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
    "gated": "gated",
}
_HAVE_K = ("topk", "abstopk")
_TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}
_SKIP_TRANSCODERS = {"standard": "skip_transcoder", "jumprelu": "jumprelu_skip_transcoder"}
_NORMALISATIONS = {
    "none": "none",
    "center": "none",  # said of the language model instead
    "layer_norm": "layer_norm",
    "constant_norm": "constant_norm_rescale",
}


def write(
    sae: SparseAutoencoder,
    folder: str | os.PathLike,
    *,
    hook_name: str | None = None,
    hook_name_out: str | None = None,
) -> Path:
    """Writes `cfg.json` and `sae_weights.safetensors`; see `export_sae`.

    Args:
        sae: The SAE; it is not changed. Its scales are folded into the written weights.
        folder: Where to; made if missing.
        hook_name: What TransformerLens calls the place; None asks the config.
        hook_name_out: What it calls the place that a transcoder writes to.

    Returns:
        The folder.

    Raises:
        ValueError: If SAELens has nothing that computes the same, or no name for a place; nothing is written then.
    """
    architecture = _architecture(sae)
    metadata = _metadata(sae.config, *transformer_lens_names(sae.config, hook_name, hook_name_out))
    plain = _plain(sae, architecture)
    names = dict(tensor_names(architecture))
    tensors = dict(plain.state_dict())
    if architecture.startswith("jumprelu"):
        names["threshold"] = "threshold"
        tensors["threshold"] = tensors["threshold"].clamp(min=0).expand(plain.config.n_features)
    if plain.config.skip:
        names["W_skip"] = "W_skip"
    return write_files(folder, WEIGHTS, theirs(tensors, names), _config(plain, architecture, metadata))


def _plain(sae: SparseAutoencoder, architecture: str) -> SparseAutoencoder:
    """A copy without scales.

    TopK gets unit rows and selects by their norms, as SAELens makes it: its tools refuse another. That changes no
    selection where all rows are of one norm; elsewhere a TopK stays as it is.
    """
    if architecture == "matching_pursuit":
        return copy.deepcopy(sae).fold_input_scale("unit_rows")  # type: ignore[attr-defined]
    subtract = False if sae.config.is_transcoder else None
    if architecture not in _HAVE_K:
        return plain_copy(sae, subtract_b_dec=subtract)
    if sae.config.rescale_by_decoder_norm or not rows_of_one_norm(sae):
        return plain_copy(sae, subtract_b_dec=subtract, keep_decoder_norm=True)
    unit = plain_copy(sae, subtract_b_dec=subtract, unit_rows=True)
    unit.config.rescale_by_decoder_norm = True
    return unit


def _architecture(sae: SparseAutoencoder) -> str:
    name, config = architecture_name(sae.config), sae.config
    there = _ARCHITECTURES.get(name)
    if config.is_transcoder:
        there = (_SKIP_TRANSCODERS if config.skip else _TRANSCODERS).get(there or "")
    elif config.skip:
        there = None
    if there is None or getattr(config, "activation", "topk") == "groupmax":
        kind = f"{name}{' transcoder' * config.is_transcoder}{' with a skip connection' * config.skip}"
        raise ValueError(f"SAELens has nothing that computes what this {kind} does.")
    return there


def _config(plain: SparseAutoencoder, architecture: str, metadata: dict[str, Any]) -> dict[str, Any]:
    config = plain.config
    settings: dict[str, Any] = {
        "architecture": architecture,
        "d_in": config.d_in,
        "d_sae": config.n_features,
        "dtype": str(plain.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": config.subtract_b_dec,
        "normalize_activations": _NORMALISATIONS[config.input_transform],
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if architecture in _HAVE_K:
        settings |= {
            "k": config.k,  # type: ignore[attr-defined]
            "rescale_acts_by_decoder_norm": config.rescale_by_decoder_norm,
        }
    if architecture == "matching_pursuit":
        settings |= {
            "max_iterations": config.k,  # type: ignore[attr-defined]
            "residual_threshold": config.residual_threshold,  # type: ignore[attr-defined]
            "stop_on_duplicate_support": config.stop_on_duplicate,  # type: ignore[attr-defined]
        }
    if config.is_transcoder:
        settings["d_out"] = config.d_out
    return settings


def _metadata(config: SAEConfig, hook_name: str | None, hook_name_out: str | None) -> dict[str, Any]:
    """What concerns the language model and its text, with what SAELens said itself of an SAE that was read."""
    training = config.training or {}
    kept = dict(training.get("sae_lens_metadata") or {})
    tokens = kept.pop("exclude_special_tokens", True)
    known = {
        "sae_lens_version": _FORMAT_VERSION,
        "model_name": config.base_model,
        "hook_name": hook_name,
        "hf_hook_name": config.hook_point,
        "context_size": config.context_length,
        "prepend_bos": config.prepend_bos,
        "exclude_special_tokens": tokens if config.exclude_special_tokens else False,
        "seqpos_slice": kept_slice(config.exclude_positions, config.context_length),
        "dataset_path": training.get("dataset"),
    }
    if config.is_transcoder:
        known |= {"hook_name_out": hook_name_out, "hf_hook_name_out": config.target_hook_point}
    if config.input_transform == "center":
        options = kept.get("model_from_pretrained_kwargs") or {}
        known["model_from_pretrained_kwargs"] = {**options, "center_writing_weights": True}
    return {key: value for key, value in {**kept, **known}.items() if value is not None}
