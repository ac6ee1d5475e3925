"""Llamascopium, OpenMOSS' Language-Model-SAEs as it saves now: `config.json` and `sae_weights.safetensors`."""

from typing import Any

import torch
from torch import Tensor

from hfsae.interop.draft import Draft
from hfsae.interop.llama_scope import dataset_scales, where
from hfsae.interop.places import hub_id
from hfsae.interop.source import Source, renamed

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"

_ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk"}
_THRESHOLD = "activation_function.log_jumprelu_threshold"


def recognises(source: Source) -> bool:
    """A config with `sae_type`."""
    return CONFIG in source.listing and WEIGHTS in source.listing and "sae_type" in source.json(CONFIG)


def read(source: Source) -> Draft:
    """See `hfsae.interop.formats.Format`."""
    config, stored = source.json(CONFIG), source.tensors(WEIGHTS)
    if config["sae_type"] not in ("sae", "transcoder"):
        raise ValueError(f"{source.path} has sae_type = {config['sae_type']!r}; known are 'sae' and 'transcoder'.")
    activation = str(config.get("act_fn", "")).lower()
    if activation not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise ValueError(
            f"{source.path} has act_fn = {config.get('act_fn')!r}, which has no counterpart; known: {known}."
        )
    if config.get("use_glu_encoder"):
        raise ValueError(f"{source.path} has a gated linear encoder, which has no counterpart here.")
    fields: dict[str, Any] = {
        **where(config, hub_id(config.get("model_name"))),
        "context_length": config.get("context_size"),
    }
    names = {"encoder.weight": "W_E.T", "encoder.bias": "b_E", "W_dec": "W_D"}
    if "b_D" in stored:
        names["b_dec"] = "b_D"
    tensors = renamed(stored, names, source)
    if activation == "topk":
        fields["k"] = int(config["top_k"])
    if activation == "jumprelu":
        tensors["threshold"] = renamed(stored, {"threshold": _THRESHOLD}, source)["threshold"].float().exp()
    if config.get("sparsity_include_decoder_norm"):
        _select_by_norm(activation, tensors, source)
    return Draft(_ARCHITECTURES[activation], {**tensors, **_scales(config, stored, fields, source)}, fields)


def _select_by_norm(activation: str, tensors: dict[str, Tensor], source: Source) -> None:
    """Features there are chosen at `h · ‖row‖` and reported at h; the same as a threshold divided by the norm."""
    norm = tensors["W_dec"].float().norm(dim=1)
    if activation == "jumprelu":
        tensors["threshold"] = tensors["threshold"] / norm
    elif activation == "topk" and not torch.allclose(norm, torch.ones_like(norm), atol=1e-3):
        raise ValueError(
            f"{source.path} chooses its k features by pre-activations times decoder norms, with rows that are not of "
            "unit norm: transform it to unit decoder norm with its own code first."
        )


def _scales(
    config: dict[str, Any], stored: dict[str, Tensor], fields: dict[str, Any], source: Source
) -> dict[str, Tensor]:
    """What `norm_activation` does to activations."""
    kind = config.get("norm_activation", "inference")
    if kind in ("inference", "none", None):
        return {}
    if kind == "token-wise":
        fields["input_transform"] = "constant_norm"
        return {}
    if kind != "dataset-wise":
        raise ValueError(f"{source.path} has norm_activation = {kind!r}, which depends on the batch.")
    hooks = {"in": config["hook_point_in"], "out": config.get("hook_point_out") or config["hook_point_in"]}
    names = {side: f"dataset_average_activation_norm.{hook}" for side, hook in hooks.items()}
    norms = renamed(stored, names, source)
    return dataset_scales({side: float(norm) for side, norm in norms.items()}, config, fields)
