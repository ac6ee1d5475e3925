"""Writes SAEs, transcoders, crosscoders and cross-layer transcoders as llamascopium 2.0.0b34 saves them."""

import copy
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.autoencoder import folding
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.registry import architecture_name
from hfsae.configuration import SAEConfig
from hfsae.interop.foreign_names import transformer_lens
from hfsae.interop.llamascopium import CONFIG, WEIGHTS
from hfsae.interop.llamascopium_layers import NORM, THRESHOLD, own_rows
from hfsae.interop.writing import write_files

# What its `act_fn` is of each rule; a threshold that features share is repeated for each.
_ONE_PLACE = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
}
_CROSSCODERS = {"standard_crosscoder": "relu", "jumprelu_crosscoder": "jumprelu", "crosscoder": "jumprelu"}
_CROSS_LAYER = {
    "topk_cross_layer_transcoder": "topk",
    "jumprelu_cross_layer_transcoder": "jumprelu",
    "cross_layer_transcoder": "jumprelu",
}
# Lengths of rows that write nothing, where a feature has to have one: at its own place, and at the others. A feature's
# gate there asks for a pre-activation a million times its threshold.
_EMPTY, _ELSEWHERE = 1e-9, 1e-15


def write(
    sae: SparseAutoencoder,
    folder: str | os.PathLike,
    *,
    hook_points: Sequence[str] | None = None,
    hook_points_out: Sequence[str] | None = None,
    as_batchtopk: bool = False,
) -> Path:
    """Writes `config.json` and `sae_weights.safetensors`; see `export_sae`.

    Args:
        sae: The SAE; it is not changed. Its scales are folded into the written weights, those of a crosscoder are
            written as mean norms. One of batch_topk is written as JumpReLU with its threshold for each feature.
            Llamascopium opens a crosscoder's feature at each place by itself. So one with thresholds is written with
            copies of its features for each place, which write there alone.
        folder: Where to; made if missing.
        hook_points: What TransformerLens calls the places that it reads, in their order; None asks the config.
        hook_points_out: Likewise the places that a transcoder writes.
        as_batchtopk: Whether one of batch_topk, no crosscoder, is written as llamascopium trains it. Its features then
            depend on the batch of tokens, and no threshold is written.

    Returns:
        The folder.

    Raises:
        ValueError: If llamascopium has nothing that computes the same, or a place has no name; nothing is written
            then.
    """
    activation = _activation(sae, as_batchtopk)
    reads, writes = _names(sae.config, hook_points, hook_points_out)
    plain: Any = copy.deepcopy(sae).cpu()
    config = plain.config
    if config.is_crosscoder and plain.dtype == torch.float16:  # rows may be shorter than that can hold
        plain = plain.float()
    settings: dict[str, Any] = {"act_fn": activation, "norm_activation": "inference", **_kind(config, reads, writes)}
    with torch.no_grad():
        if not config.is_cross_layer:
            folding.subtract_b_dec(plain, False)
            folding.fold_decoder_norm(plain)
        if config.is_crosscoder:
            tensors = _crosscoder(plain) | _dataset_norms(plain, reads)
            settings["norm_activation"] = "dataset-wise"
        else:
            plain.fold_input_scale()
            tensors = (_cross_layer if config.is_cross_layer else _one_place)(plain)
    if config.input_transform == "constant_norm":
        settings["norm_activation"] = "token-wise"
    if activation == "batchtopk":
        del tensors[THRESHOLD]
    if "topk" in activation:
        settings["top_k"] = config.k
    width = config.input_widths[0]
    settings |= {"d_model": width, "expansion_factor": _expansion(tensors["W_E"].shape[-1], width)}
    settings |= {"sparsity_include_decoder_norm": config.is_crosscoder, "dtype": str(plain.dtype).split(".")[-1]}
    known = {"model_name": config.base_model, "context_size": config.context_length}
    settings |= {key: value for key, value in known.items() if value is not None}
    return write_files(folder, WEIGHTS, tensors, settings, CONFIG)


def _kind(config: SAEConfig, reads: list[str], writes: list[str]) -> dict[str, Any]:
    """Which of its classes it is, and where that reads and writes."""
    if config.is_cross_layer:
        return {"sae_type": "clt", "hook_points_in": reads, "hook_points_out": writes}
    if config.is_crosscoder:
        return {"sae_type": "crosscoder", "hook_points": reads}
    return {"sae_type": "sae", "hook_point_in": reads[0], "hook_point_out": writes[0]}


def _activation(sae: SparseAutoencoder, as_batchtopk: bool) -> str:
    """Which rule of its chooses the same features.

    Raises:
        ValueError: If none does.
    """
    config, name = sae.config, architecture_name(sae.config)
    table = _CROSS_LAYER if config.is_cross_layer else _CROSSCODERS if config.is_crosscoder else _ONE_PLACE
    written = config.output_widths if config.is_transcoder else []
    wrong = {
        "it reads and writes places of one width alone": len({*config.input_widths, *written}) > 1,
        "it has no skip connection": config.skip,
        "it has no groupmax": getattr(config, "activation", "topk") == "groupmax",
        f"it has no {config.input_transform} of what is read": config.input_transform not in ("none", "constant_norm"),
        "its crosscoders choose the k largest at each place by itself": name == "topk_crosscoder",
        "a batchtopk is written of batch_topk at one place, or of a cross-layer one": as_batchtopk
        and name not in ("batch_topk", "cross_layer_transcoder"),
        f"it has no such rule: train one of {', '.join(table)}": name not in table,
    }
    if (reason := next((reason for reason, holds in wrong.items() if holds), None)) is not None:
        raise ValueError(f"llamascopium has nothing that computes what this {type(sae).__name__} does: {reason}.")
    return "batchtopk" if as_batchtopk else table[name]


def _names(
    config: SAEConfig, given: Sequence[str] | None, given_out: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """What TransformerLens calls the places where it reads, and where it writes.

    Raises:
        ValueError: If one has no name, two have the same, or not as many are given.
    """
    several = config.is_cross_layer or config.is_crosscoder
    reads = config.source_places if several else [config.hook_point]  # type: ignore[attr-defined]
    writes = reads
    if config.is_transcoder:
        writes = config.target_places if config.is_cross_layer else [config.target_hook_point]  # type: ignore
    found = []
    for argument, places, names in (("hook_points", reads, given), ("hook_points_out", writes, given_out)):
        if names is None and argument == "hook_points_out" and not config.is_transcoder:
            names = found[0]
        names = [transformer_lens(place, config.base_model) for place in places] if names is None else list(names)
        if len(names) != len(places) or len({*names}) != len(names) or None in names:
            raise ValueError(
                f"llamascopium tells places of one model apart by TransformerLens' names: pass {argument}=[...] with "
                f"one for each of {', '.join(map(str, places))} of {config.base_model or 'a model without a name'}, "
                f"got {names}."
            )
        found.append([str(name) for name in names])
    return found[0], found[1]


def _expansion(n_features: int, width: int) -> float:
    """The factor whose product with the width is as many features, cut to a whole number as it cuts it."""
    factor = n_features / width
    return factor if int(width * factor) == n_features else math.nextafter(factor, math.inf)


def _logarithm(threshold: Tensor) -> Tensor:
    return threshold.float().clamp(min=0).log()


def _cross_layer(plain: Any) -> dict[str, Tensor]:
    """Tensors of a cross-layer transcoder without scales."""
    layers, n = plain.config.n_layers, plain.config.features_per_layer
    tensors = {
        "W_E": plain.encoder.weight.unflatten(0, (layers, n)).transpose(1, 2),
        "b_E": plain.encoder.bias.unflatten(0, (layers, n)),
    }
    biases = plain.b_dec.split(plain.config.output_widths)
    for target in range(layers):
        tensors[f"W_D.{target}"] = torch.stack([plain.rows_between(source, target) for source in range(target + 1)])
        tensors[f"b_D.{target}"] = biases[target]
    if (threshold := getattr(plain, "threshold", None)) is not None:
        tensors[THRESHOLD] = _logarithm(threshold.view(layers, -1).expand(layers, n))
    return tensors


def _one_place(plain: Any) -> dict[str, Tensor]:
    """Tensors of an SAE of one place without scales."""
    tensors = {"W_E": plain.encoder.weight.T, "b_E": plain.encoder.bias, "W_D": plain.W_dec, "b_D": plain.b_dec}
    if (threshold := getattr(plain, "threshold", None)) is not None:
        tensors[THRESHOLD] = _logarithm(threshold.expand(plain.config.n_features))
    return tensors


def _crosscoder(plain: Any) -> dict[str, Tensor]:
    """Tensors of a crosscoder: (places, d, n), (places, n), (places, n, d), (places, d).

    A feature is open at a place where `h · ‖W_D row‖` passes its threshold. Where that asks for another h at each
    place, there are copies of all features, one for each place, and each writes at its own place alone.
    """
    places = len(plain.config.source_widths)
    encoder = plain.encoder.weight.unflatten(1, (places, -1)).permute(1, 2, 0)
    bias, threshold = plain.encoder.bias, getattr(plain, "threshold", None)
    written = plain.W_dec.unflatten(1, (places, -1)).transpose(0, 1)
    rows, tensors = _never_empty(written), {}
    if threshold is not None:
        threshold = threshold.float().clamp(min=0).expand(len(bias))
        gates, own = threshold * rows.float().norm(dim=-1), own_rows(encoder, bias, written)
        if not _one_gate(gates) and own is not None:  # as they are read of llamascopium's own
            m, own = own.shape[1], _never_empty(own)
            of_copies = threshold.view(places, m) * own.float().norm(dim=-1)
            if _one_gate(of_copies):
                encoder, bias, rows, gates = encoder[..., :m], bias[:m], own, of_copies
        if not _one_gate(gates):
            encoder, bias, rows = encoder.repeat(1, 1, places), bias.repeat(places), _apart(rows)
            gates = gates.view(1, -1)
        tensors[THRESHOLD] = gates[0].log()
    biases = torch.cat([bias[None], bias.new_zeros(places - 1, len(bias))])
    return {**tensors, "W_E": encoder, "b_E": biases, "W_D": rows, "b_D": plain.b_dec.unflatten(0, (places, -1))}


def _apart(rows: Tensor) -> Tensor:
    """Copies of rows (places, n, d), one for each place, which write at that place alone: (places, places · n, d)."""
    copies = torch.zeros(len(rows), *rows.shape, dtype=rows.dtype)
    copies[..., 0] = _ELSEWHERE
    for place, own in enumerate(rows):
        copies[place, place] = own
    return copies.flatten(1, 2)


def _one_gate(gates: Tensor) -> bool:
    """Whether all places (rows) agree on the gates of features (columns)."""
    return torch.allclose(gates, gates[:1].expand_as(gates), rtol=1e-6, atol=0)


def _never_empty(rows: Tensor) -> Tensor:
    """Rows of some length at least: llamascopium divides by their lengths."""
    least = torch.zeros_like(rows)
    least[..., 0] = _EMPTY
    return torch.where(rows.float().norm(dim=-1, keepdim=True) < _EMPTY, least, rows)


def _dataset_norms(plain: Any, names: list[str]) -> dict[str, Tensor]:
    """What the scale of each place says as a mean norm, by which llamascopium divides √d."""
    root = plain.config.input_widths[0] ** 0.5
    return {f"{NORM}.{name}": root / scale for name, scale in zip(names, plain.input_scale, strict=True)}
