"""Writes SAEs, transcoders, cross-layer transcoders and weakly causal crosscoders as Gemma Scope 2 has them."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.autoencoder import folding
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.registry import architecture_name
from hfsae.configuration import SAEConfig
from hfsae.interop.gemma_scope_2 import CONFIG, WEIGHTS
from hfsae.interop.gemma_scope_2_layers import WEIGHTS as WEIGHTS_OF_LAYER
from hfsae.interop.writing import plain_copy
from hfsae.saving import files_at_once
from hfsae.storage import write_tensors

# Rules that a threshold for each feature says; a ReLU's is 0.
_RULES = ("standard", "jumprelu", "batch_topk", "matryoshka")
_OF_SEVERAL = (
    *("standard_crosscoder", "jumprelu_crosscoder", "crosscoder"),
    *("jumprelu_cross_layer_transcoder", "cross_layer_transcoder"),
)


def write(sae: SparseAutoencoder, folder: str | os.PathLike) -> Path:
    """Writes `config.json` and `params.safetensors`, or one `params_layer_N.safetensors` a layer; see `export_sae`.

    Args:
        sae: The SAE; it is not changed. Its scales are folded into the written weights, and every feature gets a
            threshold, 0 where it has a ReLU.
        folder: Where to; made if missing.

    Returns:
        The folder.

    Raises:
        ValueError: If the format holds nothing that computes the same. That is so of crosscoders whose features read
            several places. Nothing is written then.
    """
    config = sae.config
    _refuse_unlike(sae)
    settings: dict[str, Any] = {"architecture": "jump_relu", "model_name": config.base_model}
    with torch.no_grad():
        if config.is_cross_layer or config.is_crosscoder:
            reads = config.source_places  # type: ignore[attr-defined]
            writes = config.target_places if config.is_cross_layer else reads  # type: ignore[attr-defined]
            layers = (_cross_layer if config.is_cross_layer else _crosscoder)(sae)
            files = {WEIGHTS_OF_LAYER.format(layer): tensors for layer, tensors in enumerate(layers)}
        else:
            reads, writes = config.hook_point, config.target_hook_point or config.hook_point
            files = {WEIGHTS: _one_place(sae)}
    settings |= {"hf_hook_point_in": reads, "hf_hook_point_out": writes}
    settings |= {"width": config.n_features // len(files), "affine_connection": config.skip}
    with files_at_once(Path(folder)) as beside:
        for name, tensors in files.items():
            stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
            write_tensors(beside / name, stored)
        (beside / CONFIG).write_text(json.dumps(settings, indent=2))
    return Path(folder)


def _refuse_unlike(sae: SparseAutoencoder) -> None:
    config: SAEConfig = sae.config
    name = architecture_name(config)
    places = config.source_places if config.is_crosscoder else []  # type: ignore[attr-defined]
    held = _OF_SEVERAL if len(config.input_widths) > 1 else _RULES
    named = None not in (config.base_model, config.hook_point)
    wrong = {
        f"its features have thresholds: train one of {', '.join(held)}": name not in (*_RULES, *_OF_SEVERAL),
        f"it has no {config.input_transform} of what is read": config.input_transform != "none",
        "its places have one width": config.is_crosscoder and len({*config.input_widths}) > 1,
        "its crosscoders read several places of one model": len({*places}) < len(places),
        "its config names a model and a place: set base_model and hook_point": not named,
    }
    if (reason := next((reason for reason, holds in wrong.items() if holds), None)) is not None:
        raise ValueError(f"Gemma Scope 2 holds nothing that computes what this {type(sae).__name__} does: {reason}.")


def _one_place(sae: SparseAutoencoder) -> dict[str, Tensor]:
    plain: Any = plain_copy(sae, subtract_b_dec=False)
    tensors = {
        "w_enc": plain.encoder.weight.T,
        "b_enc": plain.encoder.bias,
        "w_dec": plain.W_dec,
        "b_dec": plain.b_dec,
        "threshold": _thresholds(plain).expand(plain.config.n_features),
    }
    return tensors | ({"affine_skip_connection": plain.W_skip.T} if plain.config.skip else {})


def _cross_layer(sae: SparseAutoencoder) -> list[dict[str, Tensor]]:
    """The tensors of each layer; what its features write at earlier ones is 0."""
    plain: Any = copy.deepcopy(sae)
    plain.fold_input_scale()
    layers, n = plain.config.n_layers, plain.config.features_per_layer
    thresholds = _thresholds(plain).view(layers, -1).expand(layers, n)
    biases = plain.b_dec.split(plain.config.output_widths)
    found = []
    for layer in range(layers):
        own = slice(layer * n, layer * n + n)
        rows = plain.rows_of_layer(layer).unflatten(1, (layers - layer, -1))
        tensors = {
            "w_enc": plain.encoder.weight[own].T,
            "b_enc": plain.encoder.bias[own],
            "w_dec": torch.cat([rows.new_zeros(n, layer, rows.shape[2]), rows], 1),
            "b_dec": biases[layer],
            "threshold": thresholds[layer],
        }
        found.append(tensors | ({"affine_skip_connection": plain.W_skip[layer].T} if plain.config.skip else {}))
    return found


def _crosscoder(sae: SparseAutoencoder) -> list[dict[str, Tensor]]:
    """The tensors of each place, whose features read it alone.

    Raises:
        ValueError: If features read several places, or those of one place do not lie behind each other.
    """
    plain: Any = copy.deepcopy(sae)
    folding.subtract_b_dec(plain, False)
    plain.fold_input_scale()
    places = len(plain.config.source_widths)
    encoder, rows = (weight.unflatten(1, (places, -1)) for weight in (plain.encoder.weight, plain.W_dec))
    read = encoder.abs().amax(2) > 0
    owners = read.int().argmax(1)
    if not (read.sum(1) == 1).all() or not torch.equal(owners.unique_consecutive(), torch.arange(places).to(owners)):
        raise ValueError(
            "features of Gemma Scope 2's crosscoders read one place each, first those of the first place, then those "
            f"of the second; {int((read.sum(1) > 1).sum())} of {len(read)} features of this one read several."
        )
    thresholds, biases = _thresholds(plain).expand(len(owners)), plain.b_dec.unflatten(0, (places, -1))
    return [
        {
            "w_enc": encoder[own, place].T,
            "b_enc": plain.encoder.bias[own],
            "w_dec": rows[own],
            "b_dec": biases[place],
            "threshold": thresholds[own],
        }
        for place in range(places)
        for own in [owners == place]
    ]


def _thresholds(plain: Any) -> Tensor:
    return getattr(plain, "threshold", plain.encoder.bias.new_zeros(1)).detach().float().clamp(min=0)
