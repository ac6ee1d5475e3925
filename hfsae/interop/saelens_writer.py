"""Writes SAEs as SAELens 6 saves them."""

import os
from pathlib import Path
from typing import Any

from hfsae.architectures import architecture_name
from hfsae.interop.places import transformer_lens
from hfsae.interop.saelens import GATED, TENSORS, WEIGHTS
from hfsae.interop.writing import plain_copy, theirs, write_files
from hfsae.modeling import SAE

# The oldest version that reads this form; SAELens takes a config that names none for one of before version 6.
_FORMAT_VERSION = "6.0.0"

_ARCHITECTURES = {
    "standard": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
    "gated": "gated",
}
_TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}
_SKIP_TRANSCODERS = {"standard": "skip_transcoder", "jumprelu": "jumprelu_skip_transcoder"}
_NORMALISATIONS = {
    "none": "none",
    "center": "none",  # said of the language model instead
    "layer_norm": "layer_norm",
    "constant_norm": "constant_norm_rescale",
}


def write(sae: SAE, folder: str | os.PathLike) -> Path:
    """Writes `cfg.json` and `sae_weights.safetensors`; see `SAE.to_saelens`.

    Args:
        sae: The SAE; it is not changed. Its scales are folded into the written weights.
        folder: Where to; made if missing.

    Returns:
        The folder.

    Raises:
        ValueError: If SAELens has nothing that computes the same; nothing is written then.
    """
    architecture = _architecture(sae)
    transcoder = sae.config.is_transcoder
    plain = plain_copy(sae, subtract_b_dec=False if transcoder else None, keep_decoder_norm=architecture == "topk")
    names = {**TENSORS, **(GATED if architecture == "gated" else {"encoder.bias": "b_enc"})}
    tensors = dict(plain.state_dict())
    if architecture.startswith("jumprelu"):
        names["threshold"] = "threshold"
        tensors["threshold"] = tensors["threshold"].clamp(min=0).expand(plain.config.n_features)
    if plain.config.skip:
        names["W_skip"] = "W_skip"
    return write_files(folder, WEIGHTS, theirs(tensors, names), _config(plain, architecture))


def _architecture(sae: SAE) -> str:
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


def _config(plain: SAE, architecture: str) -> dict[str, Any]:
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
        "metadata": _metadata(plain),
    }
    if architecture == "topk":
        settings |= {
            "k": config.k,  # type: ignore[attr-defined]
            "rescale_acts_by_decoder_norm": config.rescale_by_decoder_norm,
        }
    if config.is_transcoder:
        settings["d_out"] = config.d_out
    return settings


def _metadata(plain: SAE) -> dict[str, Any]:
    config = plain.config
    known = {
        "sae_lens_version": _FORMAT_VERSION,
        "model_name": config.base_model,
        "hook_name": transformer_lens(config.hook_point, config.base_model) or config.hook_point,
        "hf_hook_name": config.hook_point,
        "context_size": config.context_length,
        "prepend_bos": config.prepend_bos,
        "exclude_special_tokens": config.exclude_special_tokens,
        "dataset_path": (config.training or {}).get("dataset"),
    }
    if config.is_transcoder:
        target = config.target_hook_point
        known |= {"hook_name_out": transformer_lens(target, config.base_model) or target, "hf_hook_name_out": target}
    if config.input_transform == "center":
        known["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    return {key: value for key, value in known.items() if value is not None}
