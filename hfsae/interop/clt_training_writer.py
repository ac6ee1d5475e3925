"""Writes TopK cross-layer transcoders as EleutherAI's clt-training saves them, a folder for each layer."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.registry import architecture_name
from hfsae.interop.clt_training import CONFIG, CONFIG_OF_LAYER, WEIGHTS_OF_LAYER
from hfsae.interop.foreign_names import canonical, module_path
from hfsae.saving import files_at_once
from hfsae.storage import write_tensors


def write(sae: SparseAutoencoder, folder: str | os.PathLike) -> Path:
    """Writes the run's `config.json` and `cfg.json` and `sae.safetensors` of each layer; see `export_sae`.

    Args:
        sae: The cross-layer transcoder; it is not changed. Its scales are folded into the written weights. A tied
            decoder goes as `per_source_tied` with `post_encoder_scale`.
        folder: Where to; made if missing.

    Returns:
        The folder.

    Raises:
        ValueError: If clt-training has nothing that computes the same. That is so of all but TopK: its files hold no
            thresholds. Likewise if a layer leads from no module's input to a module's output. Nothing is written then.
    """
    if architecture_name(sae.config) != "topk_cross_layer_transcoder" or sae.config.d_in != sae.config.d_out:
        raise ValueError(
            "clt-training holds cross-layer transcoders of TopK with equal widths, and no thresholds; this is a "
            f"{type(sae).__name__} with d_in={sae.config.d_in} and d_out={sae.config.d_out}."
        )
    reads, writes = _modules(sae.config)
    plain: Any = copy.deepcopy(sae).cpu()
    plain.fold_input_scale()
    config = plain.config
    n, layers, tied = config.features_per_layer, config.n_layers, config.tied_decoder
    shared = {
        "activation": config.activation,
        "expansion_factor": max(1, n // config.source_widths[0]),
        "normalize_decoder": False,
        "num_latents": n,
        "k": config.k,
        "skip_connection": config.skip,
        "transcode": True,
        "train_post_encoder": False,
        "post_encoder_scale": tied,
        "per_source_tied": tied,
        "coalesce_topk": "none",
        "normalize_io": False,
    }
    run = {"model": config.base_model, "ctx_len": config.context_length, "cross_layer": layers, "sae": shared}
    with files_at_once(Path(folder)) as beside:
        for layer, module in enumerate(writes):
            own = {**shared, "n_targets": layers - layer, "n_sources": layer + 1, "d_in": config.source_widths[layer]}
            (beside / module).mkdir(parents=True)
            (beside / CONFIG_OF_LAYER.format(module)).write_text(json.dumps(own, indent=2))
            write_tensors(beside / WEIGHTS_OF_LAYER.format(module), _of_layer(plain, layer))
        run |= {"hookpoints": writes, "hookpoints_in": reads if reads != writes else []}
        (beside / CONFIG).write_text(json.dumps(run, indent=2))
    return Path(folder)


@torch.no_grad()
def _of_layer(plain: Any, layer: int) -> dict[str, Tensor]:
    """The tensors of one layer; the others' parts of a bias and skip connections to later layers are 0."""
    config, n = plain.config, plain.config.features_per_layer
    own, targets = slice(layer * n, layer * n + n), range(config.n_layers - layer)
    tensors = {"encoder.weight": plain.encoder.weight[own], "encoder.bias": plain.encoder.bias[own]}
    bias = plain.b_dec.split(config.output_widths)[layer]
    for at in targets:
        tensors[f"b_decs.{at}"] = bias if at == 0 else torch.zeros_like(bias)
        tensors[f"post_encs.{at}"] = torch.zeros_like(plain.encoder.bias[own])
        if config.skip:
            tensors[f"W_skips.{at}"] = plain.W_skip[layer] if at == 0 else torch.zeros_like(plain.W_skip[layer])
        if config.tied_decoder:
            tensors[f"post_enc_scales.{at}"] = plain.decoder_scale[layer][:, at]
        else:
            tensors[f"W_decs.{at}"] = plain.rows_between(layer, layer + at)
    if config.tied_decoder:
        tensors["W_dec"] = plain.W_dec[layer]
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _modules(config: Any) -> tuple[list[str], list[str]]:
    """The modules whose inputs are read, and those whose outputs are written, layer by layer.

    Raises:
        ValueError: If a place is none of them.
    """
    found: dict[str, list[str]] = {}
    for side, places in (("input", config.source_places), ("output", config.target_places)):
        full = [canonical(place, config.base_model) for place in places]
        if wrong := [place for place in full if place is None or not place.endswith(f".{side}")]:
            raise ValueError(
                f"clt-training leads from the inputs of modules to the outputs of modules; {wrong[0]} is no {side}."
            )
        found[side] = [
            str(module_path(f"{str(place).removesuffix(f'.{side}')}.output", config.base_model)) for place in full
        ]
    return found["input"], found["output"]
