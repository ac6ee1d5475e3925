"""Gemma Scope 2's crosscoders and cross-layer transcoders: one `params_layer_N.safetensors` for each layer.

Both compute the same. Features of each layer read it alone, and `w_dec` (n, L, d) is what they write at every layer.
A weakly causal crosscoder writes where it reads, a cross-layer transcoder what the MLPs write.
"""

import re
from typing import Any

import torch
from torch import Tensor

from hfsae.configuration import join_places
from hfsae.interop.circuit_tracer_layers import layers_draft
from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import canonical, layer_of
from hfsae.interop.gemma_scope_2 import CONFIG, as_trained, gemma_3_id, reported
from hfsae.interop.settings import Settings
from hfsae.interop.source import Source, renamed

WEIGHTS = "params_layer_{}.safetensors"

_NAMES = {"W_enc": "w_enc.T", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec", "threshold": "threshold"}
_SIDES = ("hf_hook_point_in", "hf_hook_point_out")
# Where they read and write if the config does not say: as the release's transcoders do, and its SAEs of the residual
# stream.
_CROSS_LAYER = ("model.layers.0.pre_feedforward_layernorm.output", "model.layers.0.post_feedforward_layernorm.output")
_CROSSCODER = ("model.layers.0.output", "model.layers.0.output")


def recognises(source: Source) -> bool:
    """Weights that are numbered by layer."""
    return WEIGHTS.format(0) in source.candidates


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`. What the config leaves out is read from the folder's name."""
    config = source.json(CONFIG)
    config.one_of("architecture", {"jump_relu": "jumprelu"}, "jump_relu")
    base_model = gemma_3_id(config.text("model_name") or _model_in(source.path))
    n_layers = len(source.matching(WEIGHTS.format("*")))
    reads_written = _is_crosscoder(config, source)
    defaults = _CROSSCODER if reads_written else _CROSS_LAYER
    in_name = reads_written and not isinstance(config.get(_SIDES[0]), list)
    numbers = _layers_in(source.path, n_layers) if in_name else list(range(n_layers))
    reads, writes = (
        [str(canonical(place, base_model)) for place in _places(config, key, default, numbers)]
        for key, default in zip(_SIDES, defaults, strict=True)
    )
    layers = [_of_layer(source, layer, n_layers, skip=not reads_written) for layer in range(n_layers)]
    if reads_written:
        found = {str(layer_of(place)): place for place in reads}
        names = list(found) if len(found) == n_layers else reads
        draft = _crosscoder(layers, {"base_model": base_model, "hook_point": join_places(reads)}, names)
    else:
        places = {"hook_point": join_places(reads), "target_hook_point": join_places(writes)}
        draft = layers_draft([_later(own, at, source) for at, own in enumerate(layers)], base_model, places, source)
    draft.fields |= as_trained(base_model, not reads_written)
    draft.facts |= reported(config)
    return draft


def _of_layer(source: Source, layer: int, n_layers: int, skip: bool) -> dict[str, Tensor]:
    """The tensors of one layer, `W_dec` with an axis of all layers; thresholds below 0 let nothing else pass."""
    optional = {"W_skip": "affine_skip_connection.T"} if skip else {}
    tensors = renamed(source.tensors(WEIGHTS.format(layer)), _NAMES, source, optional=optional)
    shape, n_features = tuple(tensors["W_dec"].shape), len(tensors["W_enc"])
    if len(shape) != 3 or shape[:2] != (n_features, n_layers):
        raise ValueError(
            f"the decoder of layer {layer} of {source.path} has shape {shape}, expected ({n_features}, {n_layers}, "
            f"d): its features, then the {n_layers} layers that have files here."
        )
    tensors["threshold"] = tensors["threshold"].clamp(min=0)
    return tensors


def _later(tensors: dict[str, Tensor], layer: int, source: Source) -> dict[str, Tensor]:
    """The tensors of one layer of a cross-layer transcoder, which writes at that layer and later ones."""
    if tensors["W_dec"][:, :layer].any():
        raise ValueError(
            f"features of layer {layer} of {source.path} write at earlier layers, too; those of a cross-layer "
            "transcoder write at their own layer and later ones."
        )
    return {**tensors, "W_dec": tensors["W_dec"][:, layer:]}


def _crosscoder(layers: list[dict[str, Tensor]], fields: dict[str, Any], names: list[str]) -> ConvertedSAE:
    """A crosscoder whose features have encoder rows of zeros for all layers but one."""
    tensors = {
        "encoder.weight": torch.block_diag(*(own["W_enc"] for own in layers)),
        "encoder.bias": torch.cat([own["b_enc"] for own in layers]),
        "threshold": torch.cat([own["threshold"] for own in layers]),
        "W_dec": torch.cat([own["W_dec"].flatten(1) for own in layers]),
        "b_dec": torch.cat([own["b_dec"] for own in layers]),
    }
    sources = {
        "source_names": names,
        "source_widths": [own["W_enc"].shape[1] for own in layers],
    }
    return ConvertedSAE("jumprelu_crosscoder", tensors, {"subtract_b_dec": False, **sources, **fields})


def _is_crosscoder(config: Settings, source: Source) -> bool:
    """Whether it writes where it reads: by its config, else by the name of its folder."""
    reads, writes = (config.get(side) for side in _SIDES)
    if reads is not None and writes is not None:
        return reads == writes
    for kind, crosscoder in (("crosscoder", True), ("clt", False)):
        if re.search(rf"(^|[/_-]){kind}s?([/_-]|$)", source.path):
            return crosscoder
    raise ValueError(
        f"{source.path} does not say whether it is a crosscoder or a cross-layer transcoder: keep the folders' names, "
        "as in clt/width_262k_l0_medium."
    )


def _places(config: Settings, key: str, default: str, numbers: list[int]) -> list[str]:
    """Where each layer reads or writes: as the config lists it, or with each layer's number in a place of one."""
    said = config.get(key)
    if isinstance(said, list):
        if len(said) != len(numbers) or not all(isinstance(place, str) for place in said):
            raise config.unexpected(key, f"the place of each of the {len(numbers)} layers")
        return said
    place = config.text(key) or default
    if not re.search(r"layers\.\d+", place):
        raise config.unexpected(key, "a place with a layer's number, such as 'model.layers.7.output'")
    return [re.sub(r"layers\.\d+", f"layers.{number}", place) for number in numbers]


def _layers_in(path: str, n_layers: int) -> list[int]:
    """The layers that a crosscoder's folder names: `crosscoder/layer_7_13_17_22_width_65k_l0_medium`."""
    found = re.findall(r"layer((?:_\d+)+)", path)
    numbers = [int(number) for number in found[-1].split("_")[1:]] if found else []
    if len(numbers) != n_layers:
        raise ValueError(
            f"{path} has files of {n_layers} layers, and its name does not say which: keep the folder's name, as in "
            "layer_7_13_17_22_width_65k_l0_medium."
        )
    return numbers


def _model_in(path: str) -> str | None:
    """The language model that a repository's name holds: `google/gemma-scope-2-1b-pt`."""
    found = re.search(r"gemma-scope-2-([^/]+)", path)
    return f"gemma-3-{found[1]}" if found else None
