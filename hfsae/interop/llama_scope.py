"""Llama Scope (He et al. 2024, arXiv:2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`.

Activations are scaled by √d / their mean norm over the dataset; one threshold, in scaled space, for all features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import canonical
from hfsae.interop.settings import Settings
from hfsae.interop.source import Source, renamed

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
LINEAR = {
    "encoder.weight": "encoder.weight",
    "encoder.bias": "encoder.bias",
    "W_dec": "decoder.weight.T",
    "b_dec": "decoder.bias",
}


def recognises(source: Source) -> bool:
    """The config is called as in no other format."""
    return CONFIG in source.listing


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`."""
    config = source.json(CONFIG).having("jump_relu_threshold")
    base_model = "meta-llama/Llama-3.1-8B" if "Llama3_1" in source.path else None
    tensors = renamed(source.tensors(WEIGHTS), LINEAR, source)
    threshold = torch.full(
        (len(tensors["encoder.bias"]),), config.number("jump_relu_threshold") or 0.0, dtype=torch.float32
    )
    fields = {
        **where(config, base_model),
        # Context and BOS as SAELens' loader for these SAEs has them (sae-lens 6.54.12).
        "context_length": 1024,
        "prepend_bos": True,
        "exclude_special_tokens": False,
    }
    norms = config.section("dataset_average_activation_norm")
    scales = dataset_scales({side: norms.number(side) for side in norms}, config, fields)
    facts = {"reported_l0": config.whole("top_k")}
    return ConvertedSAE("jumprelu", {**tensors, "threshold": threshold, **scales}, fields, facts, **said(config))


def where(config: Settings, base_model: str | None) -> dict[str, Any]:
    """Base model and hook points as configs of OpenMOSS name them."""
    reads, writes = config.having("hook_point_in").text("hook_point_in"), config.text("hook_point_out")
    return {
        "subtract_b_dec": False,
        "base_model": base_model,
        "hook_point": canonical(reads, base_model),
        "target_hook_point": canonical(writes, base_model) if writes != reads else None,
    }


def said(config: Settings) -> dict[str, Any]:
    """What configs of OpenMOSS say of the weights: sizes and dtype, and whether they are a transcoder's."""
    return {
        "sizes": {"d_in": config.whole("d_model"), "n_features": config.whole("d_sae")},
        "dtype": config.text("dtype"),
        "transcodes": config.get("sae_type") == "transcoder",
    }


def dataset_scales(norms: Mapping[str, float | None], config: Settings, fields: dict[str, Any]) -> dict[str, Tensor]:
    """`input_scale`, and `output_scale` of a transcoder, from mean norms: √d / norm, 1 where none is recorded.

    Raises:
        ValueError: If one of two is missing, or is not positive.
    """
    if not norms:
        return {}
    sides = {"input_scale": "in"} | ({"output_scale": "out"} if fields["target_hook_point"] is not None else {})
    root = float(config.having("d_model").number("d_model") or 0) ** 0.5
    if not all((norms.get(side) or 0) > 0 for side in sides.values()):
        raise ValueError(f"{config.called} has mean norms {dict(norms)}, expected a positive one for each side.")
    return {scale: torch.tensor(root / norms[side]) for scale, side in sides.items()}  # type: ignore[operator]
