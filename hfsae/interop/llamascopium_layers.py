"""Llamascopium's crosscoders and cross-layer transcoders (llamascopium 2.0.0b34), beside its SAEs of one place.

Both hold matrices with an axis of places: `W_E` (places, d, n) and `b_E` (places, n). A crosscoder's `W_D` is
(places, n, d). A cross-layer transcoder's `W_D.t` is (t + 1, n, d): what features of layers 0 to t write at layer t.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from hfsae.configuration import join_places
from hfsae.interop.circuit_tracer_layers import layers_draft
from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import base_model_id, canonical
from hfsae.interop.settings import Settings
from hfsae.interop.source import Source, renamed

# Entries of decoder rows that write nothing.
_NOTHING = 1e-12
NORM = "dataset_average_activation_norm"
THRESHOLD = "activation_function.log_jumprelu_threshold"


def crosscoder(config: Settings, stored: dict[str, Tensor], source: Source) -> ConvertedSAE:
    """A crosscoder, which gates a feature at each place by itself: there `h · ‖W_D row‖` has to pass the threshold.

    A ReLU opens at all places together. A threshold does not, so a JumpReLU has here a feature for each of its places
    and features. They lie as its own activations (places, n) do.
    """
    activation = activation_of(config, ("relu", "jumprelu"))
    places = _places(config, "hook_points")
    names = {"W_E": "W_E", "b_E": "b_E", "W_D": "W_D", "b_D": "b_D"}
    if activation == "jumprelu":
        names["threshold"] = THRESHOLD
    w = renamed(stored, names, source, known=[f"{NORM}.*"])
    _refuse_axes(w, {"W_E": 3, "b_E": 2, "W_D": 3, "b_D": 2}, len(places), source)
    tensors = {
        "encoder.weight": w["W_E"].permute(2, 0, 1).flatten(1),
        "encoder.bias": w["b_E"].sum(0),
        "W_dec": w["W_D"].permute(1, 0, 2).flatten(1),
        "b_dec": w["b_D"].flatten(),
    }
    if activation == "jumprelu" and (joint := _joint(w, tensors["encoder.bias"])) is not None:
        tensors |= joint
    elif activation == "jumprelu":
        norms = w["W_D"].float().norm(dim=-1)
        tensors["encoder.weight"] = tensors["encoder.weight"].repeat(len(places), 1)
        tensors["encoder.bias"] = tensors["encoder.bias"].repeat(len(places))
        tensors["W_dec"] = torch.block_diag(*w["W_D"])
        tensors["threshold"] = (w["threshold"].float().exp() / norms).flatten()
    if (scales := _scales(config, stored, places, source)) is not None:
        tensors["input_scale"] = scales
    base_model = base_model_id(config.text("model_name"))
    fields: dict[str, Any] = {
        "subtract_b_dec": False,
        "source_names": places,
        "source_widths": [w["W_E"].shape[1]] * len(places),
        "base_model": base_model,
        "hook_point": join_places(str(canonical(place, base_model)) for place in places),
    }
    architecture = "jumprelu_crosscoder" if activation == "jumprelu" else "standard_crosscoder"
    return ConvertedSAE(architecture, tensors, fields, dtype=config.text("dtype"))


def _joint(w: dict[str, Tensor], bias: Tensor) -> dict[str, Tensor] | None:
    """What was written of a crosscoder that opens a feature at all places together; None of others.

    See `llamascopium_writer`: the file then has a copy of each feature for each place.
    """
    if (rows := own_rows(w["W_E"], bias, w["W_D"])) is None:
        return None
    thresholds = w["threshold"].float().exp().view(len(rows), -1) / rows.float().norm(dim=-1)
    if not torch.allclose(thresholds, thresholds[:1].expand_as(thresholds), rtol=1e-5, atol=0):
        return None
    m = rows.shape[1]
    return {
        "encoder.weight": w["W_E"][..., :m].permute(2, 0, 1).flatten(1),
        "encoder.bias": bias[:m],
        "W_dec": rows.permute(1, 0, 2).flatten(1),
        "threshold": thresholds[0],
    }


def own_rows(encoder: Tensor, bias: Tensor, rows: Tensor) -> Tensor | None:
    """What each place's copies of features write there, (places, m, d), where features are such copies; else None.

    Args:
        encoder: (places, d, places · m): the m features of the first place, of the second place, ...
        bias: (places · m,).
        rows: (places, places · m, d): what each writes at each place.
    """
    places, n = len(rows), rows.shape[1]
    if places == 1 or n % places:
        return None
    m = n // places
    same = all(torch.equal(part, encoder[..., :m]) for part in encoder.split(m, -1))
    if not same or not all(torch.equal(part, bias[:m]) for part in bias.split(m)):
        return None
    blocks = rows.unflatten(1, (places, m))
    own = torch.stack([blocks[place, place] for place in range(places)])
    elsewhere = ~torch.eye(places, dtype=torch.bool, device=rows.device)
    return own if not (blocks.abs().amax((2, 3))[elsewhere] > _NOTHING).any() else None


def cross_layer_transcoder(config: Settings, stored: dict[str, Tensor], source: Source) -> ConvertedSAE:
    """A cross-layer transcoder; where decoder norms count, those of what a feature writes at all layers."""
    activation = activation_of(config, ("relu", "jumprelu", "topk", "batchtopk"))
    reads, writes = _places(config, "hook_points_in"), _places(config, "hook_points_out")
    n_layers = len(reads)
    names = {"W_E": "W_E", "b_E": "b_E"}
    names |= {f"{name}.{layer}": f"{name}.{layer}" for name in ("W_D", "b_D") for layer in range(n_layers)}
    if activation == "jumprelu":
        names["threshold"] = THRESHOLD
    w = renamed(stored, names, source, known=[f"{NORM}.*"])
    _refuse_axes(w, {"W_E": 3, "b_E": 2}, n_layers, source)
    for layer in range(n_layers):
        _refuse_axes(w, {f"W_D.{layer}": 3}, layer + 1, source)
    layers = [
        {
            "W_enc": w["W_E"][layer].T,
            "b_enc": w["b_E"][layer],
            "W_dec": torch.stack([w[f"W_D.{target}"][layer] for target in range(layer, n_layers)], 1),
            "b_dec": w[f"b_D.{layer}"],
        }
        for layer in range(n_layers)
    ]
    norms = torch.stack([own["W_dec"].float().flatten(1).norm(dim=1) for own in layers])
    by_norm = config.flag("sparsity_include_decoder_norm", default=True)
    if activation == "jumprelu":
        thresholds = w["threshold"].float().exp() / (norms if by_norm else 1)
        for own, threshold in zip(layers, thresholds, strict=True):
            own["threshold"] = threshold
    elif "topk" in activation and by_norm:
        refuse_unequal_norms(norms, source)
    base_model = base_model_id(config.text("model_name"))
    places = {
        name: join_places(str(canonical(place, base_model)) for place in own)
        for name, own in (("hook_point", reads), ("target_hook_point", writes))
    }
    draft = layers_draft(layers, base_model, places, source)
    if "topk" in activation:
        draft.architecture = {"topk": "topk_cross_layer_transcoder", "batchtopk": "cross_layer_transcoder"}[activation]
        draft.fields["k"] = config.having("top_k").whole("top_k")
        del draft.tensors["threshold"]
        if activation == "batchtopk":
            draft.tensors["threshold"] = threshold_given(source).expand(n_layers)
    for name, hooks in (("input_scale", reads), ("output_scale", writes)):
        if (scales := _scales(config, stored, hooks, source)) is not None:
            draft.tensors[name] = scales
    draft.dtype = config.text("dtype")
    return draft


READERS = {"crosscoder": crosscoder, "clt": cross_layer_transcoder}
"""The readers of what stands at several places, by `sae_type`."""


def activation_of(config: Settings, known: Collection[str]) -> str:
    """Which rule chooses the features, in small letters.

    Raises:
        ValueError: If it has no counterpart here.
    """
    lowered = Settings({**config, "act_fn": (config.text("act_fn") or "none").lower()}, config.called)
    return lowered.one_of("act_fn", {name: name for name in known}, "none")


def threshold_given(source: Source) -> Tensor:
    """The threshold of a batch_topk, which its files lack: there each batch of tokens shares a budget.

    Raises:
        ValueError: If the caller does not pass it, or it is no number from 0 on.
    """
    threshold = source.given.pop("threshold", None)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold >= 0:
        raise ValueError(
            f"{source.path} chooses features over a batch of tokens, and its files hold no threshold for single ones. "
            f"Pass threshold=..., a number from 0 on, got {threshold!r}. With threshold=0, sae.calibrate(...) then "
            "sets it on activations."
        )
    return torch.tensor(float(threshold), dtype=torch.float32)


def refuse_unequal_norms(norms: Tensor, source: Source) -> None:
    """Raises where features are ranked by pre-activations times decoder norms that are not 1."""
    if not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
        raise ValueError(
            f"{source.path} chooses its k features by pre-activations times decoder norms, with rows that are not of "
            "unit norm: transform it to unit decoder norm with its own code first."
        )


def _places(config: Settings, key: str) -> list[str]:
    """The hook points that a config lists."""
    places = config.having(key)[key]
    if not isinstance(places, list) or not places or not all(isinstance(place, str) for place in places):
        raise config.unexpected(key, "a list of hook points")
    return places


def _refuse_axes(tensors: dict[str, Tensor], axes: dict[str, int], places: int, source: Source) -> None:
    """Raises where a tensor has another number of axes, or its first axis is not that of the places."""
    for name, many in axes.items():
        shape = tuple(tensors[name].shape)
        if len(shape) != many or shape[0] != places:
            raise ValueError(
                f"{name} of {source.path} has shape {shape}, expected {many} axes, the first of size {places}: the "
                "places that its config lists."
            )


def _scales(config: Settings, stored: dict[str, Tensor], places: list[str], source: Source) -> Tensor | None:
    """√d / the mean norm at each place, by which activations there are multiplied; None where nothing is."""
    kind = config.get("norm_activation", "inference")
    if kind in ("inference", "none", None):
        return None
    if kind != "dataset-wise":
        raise ValueError(
            f"{source.path} has norm_activation = {kind!r}, which has no counterpart over several places."
        )
    norms = renamed(stored, {place: f"{NORM}.{place}" for place in places}, source, known=["*"])
    root = float(config.having("d_model").number("d_model") or 0) ** 0.5
    means = torch.stack([norms[place].float().reshape(()) for place in places])
    if not (means > 0).all() or not root > 0:
        raise ValueError(f"{config.called} has mean norms {means.tolist()}, expected a positive one for each place.")
    return root / means
