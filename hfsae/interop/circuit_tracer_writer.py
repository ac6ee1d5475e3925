"""Writes transcoders of all layers as one set for circuit-tracer, which draws attribution graphs with them."""

import os
from collections.abc import Sequence
from pathlib import Path

import yaml
from safetensors.torch import save_file
from torch import Tensor

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.registry import architecture_name
from hfsae.interop.circuit_tracer import CONFIG, OPTIONAL, TENSORS
from hfsae.interop.foreign_names import layer_of, transformer_lens_names
from hfsae.interop.writing import plain_copy, theirs
from hfsae.saving import files_at_once

# Architectures that compute ReLU, or pass what lies above a threshold.
_RELU, _THRESHOLD = ("standard",), ("jumprelu", "batch_topk", "matryoshka")


def write_transcoder_set(
    saes: Sequence[SparseAutoencoder], folder: str | os.PathLike, *, scan: str | None = None
) -> Path:
    """Writes `config.yaml` and one `layer_N.safetensors` a layer, as circuit-tracer 0.5.0 loads them.

    Args:
        saes: Transcoders of one language model, one for each layer from 0 on, in any order; they are not changed.
            BatchTopK and Matryoshka are written with their threshold for every feature.
        folder: Where to; made if missing.
        scan: What circuit-tracer calls the features where it shows them; None takes the folder's name.

    Returns:
        The folder.

    Raises:
        ValueError: If the format cannot hold them. A layer is missing or there twice, widths or places differ, or one
            is no transcoder, a TopK or a gated one. Nothing is written then.

    Example:
        >>> from hfsae.interop.circuit_tracer_writer import write_transcoder_set
        >>> write_transcoder_set([SAE.from_pretrained(f"run/mlp_in.{i}") for i in range(12)], "set")  # doctest: +SKIP
        PosixPath('set')
    """
    by_layer: dict[int, SparseAutoencoder] = {}
    hooks: set[tuple[str, str]] = set()
    for sae in saes:
        layer, reads, writes = _place(sae)
        if layer in by_layer:
            raise ValueError(f"circuit-tracer takes one transcoder a layer; there are two of layer {layer}.")
        by_layer[layer] = sae
        hooks.add((reads, writes))
    _refuse_unlike(by_layer, hooks)
    ((reads, writes),) = hooks
    config = {
        "model_name": by_layer[0].config.base_model,
        "model_kind": "transcoder_set",
        "feature_input_hook": reads,
        "feature_output_hook": writes,
        "scan": scan or Path(folder).name,
    }
    with files_at_once(Path(folder)) as beside:
        for layer, sae in by_layer.items():
            save_file(_tensors(sae), beside / f"layer_{layer}.safetensors")
        (beside / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))
    return Path(folder)


def _place(sae: SparseAutoencoder) -> tuple[int, str, str]:
    """The layer, and the places within it."""
    config, name = sae.config, architecture_name(sae.config)
    if name == "topk":
        raise ValueError(
            "circuit-tracer 0.5.0 passes over `activation: topk` and would compute a ReLU: a TopK cannot go. Train "
            "batch_topk or jumprelu, which go as thresholds."
        )
    if not config.is_transcoder or name not in (*_RELU, *_THRESHOLD) or config.d_in != config.d_out:
        raise ValueError(
            f"circuit-tracer's sets hold transcoders of ReLU or thresholds and equal widths; this is a "
            f"{type(sae).__name__} from {config.hook_point} (d_in={config.d_in}) to "
            f"{config.target_hook_point} (d_out={config.d_out})."
        )
    names = [str(found) for found in transformer_lens_names(config)]
    layers = [layer_of(found) for found in names]
    if layers[0] is None or layers[0] != layers[1]:
        raise ValueError(f"circuit-tracer's transcoders stay within one layer, this leads from {' to '.join(names)}.")
    reads, writes = (found.removeprefix(f"blocks.{layers[0]}.") for found in names)
    return layers[0], reads, writes


def _refuse_unlike(by_layer: dict[int, SparseAutoencoder], hooks: set[tuple[str, str]]) -> None:
    layers = sorted(by_layer)
    if layers != list(range(len(layers))) or not layers:
        raise ValueError(f"circuit-tracer takes a transcoder for every layer from 0 on, got layers {layers}.")
    if len(hooks) > 1:
        raise ValueError(f"circuit-tracer's transcoders share their places in all layers, got {sorted(hooks)}.")
    for fact in ("d_in", "n_features", "skip", "base_model"):
        values = {getattr(sae.config, fact) for sae in by_layer.values()}
        if len(values) > 1:
            raise ValueError(f"circuit-tracer's transcoders have one {fact} in all layers, got {sorted(values)}.")


def _tensors(sae: SparseAutoencoder) -> dict[str, Tensor]:
    """One transcoder's, scales folded in, nothing subtracted."""
    plain = plain_copy(sae, subtract_b_dec=False)
    tensors, names = dict(plain.state_dict()), dict(TENSORS)
    if "threshold" in tensors:
        names["threshold"] = OPTIONAL["threshold"]
        tensors["threshold"] = tensors["threshold"].clamp(min=0).expand(plain.config.n_features)
    if plain.config.skip:
        names["W_skip"] = OPTIONAL["W_skip"]
    return {name: tensor.cpu() for name, tensor in theirs(tensors, names).items()}
