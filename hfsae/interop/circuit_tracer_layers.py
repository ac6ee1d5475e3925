"""circuit-tracer's cross-layer transcoders: `config.yaml`, and `W_enc_N` and `W_dec_N.safetensors` for each layer.

`W_dec_N` is (n, L − N, d): what the features of layer N write at it and at each later one. Thresholds make a JumpReLU;
without them features are ReLU, which is a JumpReLU whose thresholds are 0 (circuit-tracer 0.5.0).
"""

import copy
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.configuration import join_places
from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import base_model_id, canonical, layer_of, transformer_lens_names
from hfsae.interop.source import Source, renamed
from hfsae.saving import files_at_once
from hfsae.storage import write_tensors

CONFIG = "config.yaml"
KIND = "cross_layer_transcoder"
"""The `model_kind` of features that write at several layers."""

_READ, _WRITTEN = "hook_resid_mid", "hook_mlp_out"
"""Where circuit-tracer takes them to read and write where the config does not say."""


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`."""
    config = source.yaml(CONFIG)
    config.one_of("activation", dict.fromkeys(("relu", "jumprelu", "jump_relu"), ""), "relu")
    base_model = base_model_id(config.text("model_name"))
    n_layers = len(source.matching("W_enc_*.safetensors"))
    layers = [_of_layer(source, layer) for layer in range(n_layers)]
    if not layers:
        raise ValueError(f"{source.path} lacks W_enc_0.safetensors and what belongs to it.")
    places = {
        side: join_places(str(canonical(f"blocks.{layer}.{hook}", base_model)) for layer in range(n_layers))
        for side, hook in (
            ("hook_point", config.text("feature_input_hook") or _READ),
            ("target_hook_point", config.text("feature_output_hook") or _WRITTEN),
        )
    }
    return layers_draft(layers, base_model, places, source)


def _of_layer(source: Source, layer: int) -> dict[str, Tensor]:
    """The tensors of one layer: `W_enc` (n, d), `b_enc`, `W_dec` (n, later layers, d), `b_dec`, `threshold`."""
    encoder, decoder = (source.tensors(f"{name}_{layer}.safetensors") for name in ("W_enc", "W_dec"))
    names = {name: f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec")}
    tensors = renamed(encoder, names, source, optional={"threshold": f"threshold_{layer}"})
    return tensors | renamed(decoder, {"W_dec": f"W_dec_{layer}"}, source)


def layers_draft(
    layers: list[dict[str, Tensor]], base_model: str | None, places: dict[str, str], source: Source
) -> ConvertedSAE:
    """A JumpReLU cross-layer transcoder from the tensors of its layers.

    Args:
        layers: Of each `W_enc` (n, d), `b_enc` (n,), `W_dec` (n, later layers, d_out) and `b_dec` (d_out,). Where
            there is one, also `threshold` (n,) or a number, and `W_skip` (d_out, d).
        base_model: Hub id of the language model.
        places: `hook_point` and `target_hook_point`, joined.
        source: What errors are about.

    Raises:
        ValueError: If shapes do not belong together, or thresholds let negative values pass.
    """
    for layer, tensors in enumerate(layers):
        shape, later = tuple(tensors["W_dec"].shape), len(layers) - layer
        if len(shape) != 3 or shape[1] != later or shape[0] != len(tensors["W_enc"]):
            raise ValueError(
                f"the decoder of layer {layer} of {source.path} has shape {shape}, expected "
                f"({len(tensors['W_enc'])}, {later}, d): its features, then the layers from it to the last."
            )
        threshold = tensors.get("threshold", torch.zeros((), dtype=torch.float32))
        if (threshold < 0).any():
            raise ValueError(
                f"{source.path} has negative thresholds: negative features pass them, which has no counterpart here."
            )
        tensors["threshold"] = threshold.float().expand(len(tensors["W_enc"]))
    whole = {
        "encoder.weight": torch.cat([tensors["W_enc"] for tensors in layers]),
        "encoder.bias": torch.cat([tensors["b_enc"] for tensors in layers]),
        "b_dec": torch.cat([tensors["b_dec"] for tensors in layers]),
        "threshold": torch.cat([tensors["threshold"] for tensors in layers]),
        **{f"W_dec.{layer}": tensors["W_dec"].flatten(1) for layer, tensors in enumerate(layers)},
    }
    skip = "W_skip" in layers[0]
    if skip:
        whole["W_skip"] = torch.stack([tensors["W_skip"] for tensors in layers])
    fields: dict[str, Any] = {
        "source_names": [str(layer) for layer in range(len(layers))],
        "source_widths": [tensors["W_enc"].shape[1] for tensors in layers],
        "skip": skip,
        "base_model": base_model,
        **places,
    }
    return ConvertedSAE("jumprelu_cross_layer_transcoder", whole, fields, transcodes=True)


def write(sae: SparseAutoencoder, folder: str | os.PathLike, *, scan: str | None = None) -> Path:
    """Writes a cross-layer transcoder as circuit-tracer 0.5.0 loads it, with the same features and reconstructions.

    Args:
        sae: The cross-layer transcoder; it is not changed. One of batch_topk is written with its thresholds repeated,
            a tied decoder as one for every pair of layers.
        folder: Where to; made if missing.
        scan: What circuit-tracer calls the features where it shows them; None takes the folder's name.

    Returns:
        The folder.

    Raises:
        ValueError: If the format cannot hold it. It is a TopK, has a skip connection, or does not stand at every layer
            from 0 on at one kind of place. Nothing is written then.
    """
    plain: Any = copy.deepcopy(sae)
    threshold = getattr(plain, "threshold", None)
    if threshold is None or plain.config.skip or plain.config.d_in != plain.config.d_out:
        raise ValueError(
            "circuit-tracer's cross-layer transcoders have thresholds, no skip connection and equal widths; this is a "
            f"{type(sae).__name__} with skip={plain.config.skip}, d_in={plain.config.d_in} and "
            f"d_out={plain.config.d_out}."
        )
    hooks = {_hooks(step.config, layer) for layer, step in enumerate(plain.by_layer().values())}
    if len(hooks) > 1:
        raise ValueError(f"circuit-tracer's transcoders share their places in all layers, got {sorted(hooks)}.")
    ((reads, writes),) = hooks
    plain.fold_input_scale()
    n, n_layers = plain.config.features_per_layer, plain.config.n_layers
    config = {
        "model_name": plain.config.base_model,
        "model_kind": KIND,
        "feature_input_hook": reads,
        "feature_output_hook": writes,
        "scan": scan or Path(folder).name,
    }
    thresholds = threshold.detach().clamp(min=0).view(n_layers, -1).expand(n_layers, n)
    biases = plain.b_dec.detach().split(plain.config.output_widths)
    with files_at_once(Path(folder)) as beside:
        for layer in range(n_layers):
            own = slice(layer * n, layer * n + n)
            encoder = {
                f"W_enc_{layer}": plain.encoder.weight[own],
                f"b_enc_{layer}": plain.encoder.bias[own],
                f"b_dec_{layer}": biases[layer],
                f"threshold_{layer}": thresholds[layer],
            }
            decoder = plain.rows_of_layer(layer).unflatten(1, (n_layers - layer, -1))
            for name, tensors in (("W_enc", encoder), ("W_dec", {f"W_dec_{layer}": decoder})):
                stored = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
                write_tensors(beside / f"{name}_{layer}.safetensors", stored)
        (beside / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
    return Path(folder)


def _hooks(config: Any, layer: int) -> tuple[str, str]:
    """Where a layer reads and writes, within it."""
    reads, writes = (str(name) for name in transformer_lens_names(config))
    if layer_of(reads) != layer or layer_of(writes) != layer:
        raise ValueError(
            f"circuit-tracer takes every layer from 0 on, in order; this one leads from {reads} to {writes} in place "
            f"{layer}."
        )
    return reads.removeprefix(f"blocks.{layer}."), writes.removeprefix(f"blocks.{layer}.")
