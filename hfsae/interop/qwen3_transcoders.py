"""Transcoders for Qwen3 (mwhanna): `layer_N.safetensors`, one a layer, with the run's YAML beside."""

from typing import Any

import yaml

from hfsae.interop.draft import Draft
from hfsae.interop.places import canonical
from hfsae.interop.source import Source, renamed

# One of the two is a slip of the pen that some repositories carry.
_RUN = ("wandb-config.yaml", "wanb-config.yaml")
_WEIGHTS = "layer_*.safetensors"


def recognises(source: Source) -> bool:
    """Numbered weights beside a config of Weights & Biases."""
    return any(name in source.listing for name in _RUN) and bool(source.matching(_WEIGHTS))


def read(source: Source) -> Draft:
    """See `hfsae.interop.formats.Format`."""
    weights = source.the_one(_WEIGHTS)
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    tensors = renamed(source.tensors(weights), names, source)
    base_model, layer = _base_model(source), weights.removesuffix(".safetensors").split("_")[-1]
    fields: dict[str, Any] = {
        "subtract_b_dec": False,
        "base_model": base_model,
        "hook_point": canonical(f"mlp_in.{layer}", base_model),
        "target_hook_point": canonical(f"mlp_out.{layer}", base_model),
    }
    return Draft("standard", tensors, fields)


def _base_model(source: Source) -> str | None:
    """From `config.yaml`, which some repositories lack; their name says it then."""
    try:
        return yaml.safe_load(source.fetch("config.yaml").read_text())["model_name"]
    except (FileNotFoundError, KeyError, TypeError):
        size = source.path.rpartition("qwen3-")[2].split("b-")[0]
        return f"Qwen/Qwen3-{size}B" if "qwen3-" in source.path else None
