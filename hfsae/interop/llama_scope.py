"""Llama Scope (He et al. 2024, arXiv:2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`.

Activations are scaled by √d / their mean norm over the dataset; one threshold, in scaled space, for all features.
"""

from typing import Any

import torch
from torch import Tensor

from hfsae.interop.draft import Draft
from hfsae.interop.places import canonical
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


def read(source: Source) -> Draft:
    """See `hfsae.interop.formats.Format`."""
    config = source.json(CONFIG)
    base_model = "meta-llama/Llama-3.1-8B" if "Llama3_1" in source.path else None
    tensors = renamed(source.tensors(WEIGHTS), LINEAR, source)
    threshold = torch.full((len(tensors["encoder.bias"]),), float(config["jump_relu_threshold"]))
    fields = {
        **where(config, base_model),
        # Context and BOS as SAELens' loader for these SAEs has them (sae-lens 6.54.12).
        "context_length": 1024,
        "prepend_bos": True,
        "exclude_special_tokens": False,
    }
    scales = dataset_scales(config.get("dataset_average_activation_norm"), config, fields)
    return Draft(
        "jumprelu", {**tensors, "threshold": threshold, **scales}, fields, {"reported_l0": config.get("top_k")}
    )


def where(config: dict[str, Any], base_model: str | None) -> dict[str, Any]:
    """Base model and hook points as configs of OpenMOSS name them."""
    reads, writes = config["hook_point_in"], config.get("hook_point_out")
    return {
        "subtract_b_dec": False,
        "base_model": base_model,
        "hook_point": canonical(reads, base_model),
        "target_hook_point": canonical(writes, base_model) if writes and writes != reads else None,
    }


def dataset_scales(
    norms: dict[str, float] | None, config: dict[str, Any], fields: dict[str, Any]
) -> dict[str, Tensor]:
    """`input_scale`, and `output_scale` of a transcoder, from mean norms: √d / norm, 1 where none is recorded."""
    if not norms:
        return {}
    root = config["d_model"] ** 0.5
    scales = {"input_scale": torch.tensor(root / float(norms["in"]))}
    if fields["target_hook_point"] is not None:
        scales["output_scale"] = torch.tensor(root / float(norms["out"]))
    return scales
