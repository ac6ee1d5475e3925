"""EleutherAI's clt-training (commit cf9821f): a cross-layer transcoder with a folder like sparsify's for each layer.

The run's `config.json` lists the layers' folders, and `cfg.json` of each says how decoders are shared. What features
of layer l write at layer t is `W_dec[l → t] · post_enc_scale[l, t − l]`:

* no sharing: `W_decs.(t − l)` of layer l
* `per_source_tied`: `W_dec` of layer l
* `coalesce_topk: concat`: `W_dec` of layer t
* `coalesce_topk: per-layer`: n rows of `W_dec` of layer t for each layer that writes there, n features each
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfsae.configuration import join_places
from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import base_model_id, canonical
from hfsae.interop.llamascopium_layers import threshold_given
from hfsae.interop.settings import Settings
from hfsae.interop.source import Source, renamed

CONFIG, CONFIG_OF_LAYER, WEIGHTS_OF_LAYER = "config.json", "{}/cfg.json", "{}/sae.safetensors"

_ARCHITECTURES = {
    "topk": "topk_cross_layer_transcoder",
    "groupmax": "topk_cross_layer_transcoder",
    "batchtopk": "cross_layer_transcoder",
}
_OF_ITSELF, _OF_LAST, _OF_PAIRS = "none", "concat", "per-layer"
"""How decoders are shared, by `coalesce_topk`: not, or one for each target, or one for each pair."""


@dataclass
class _Layer:
    """The tensors of one layer, those of several targets by their distance; scales that it lacks are 1."""

    decoders: list[Tensor]
    scales: list[Tensor]
    biases: list[Tensor]
    skip: Tensor | None
    encoder: dict[str, Tensor]
    norms: dict[str, Tensor]


def recognises(source: Source) -> bool:
    """The config of a run that trained on later layers, too."""
    if CONFIG not in source.listing:
        return False
    config = source.json(CONFIG)
    return bool(config.get("cross_layer")) and "sae" in config and "hookpoints" in config


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`."""
    run = source.json(CONFIG)
    hooks = _texts(run, "hookpoints")
    settings = [source.json(CONFIG_OF_LAYER.format(hook)).having("k", "d_in") for hook in hooks]
    shared = _shared(settings, source)
    how = settings[0].one_of("coalesce_topk", {name: name for name in (_OF_ITSELF, _OF_LAST, _OF_PAIRS)}, _OF_ITSELF)
    layers = [_layer(source, hook, config, how) for hook, config in zip(hooks, settings, strict=True)]
    n_layers, d = len(layers), layers[0].encoder["encoder.weight"].shape[1]
    decoder = _decoders(layers, how, settings[0], source)
    activation = settings[0].text("activation") or "topk"
    tensors: dict[str, Tensor] = {
        **{name: torch.cat([layer.encoder[name] for layer in layers]) for name in layers[0].encoder},
        **decoder,
        "b_dec": torch.cat(_biases(layers, how, settings[0])),
    }
    for scale, norm in (("input_scale", "in_norm"), ("output_scale", "out_norm")):
        if norm in layers[0].norms:
            tensors[scale] = d**0.5 / torch.stack([layer.norms[norm].float().reshape(()) for layer in layers])
    skip = layers[0].skip is not None
    if skip:
        tensors["W_skip"] = torch.stack([layer.skip for layer in layers if layer.skip is not None])
    fields: dict[str, Any] = {
        "k": shared["k"],
        "tied_decoder": "decoder_scale.0" in tensors,
        "skip": skip,
        "source_names": [str(layer) for layer in range(n_layers)],
        "source_widths": [d] * n_layers,
        **_places(run, hooks),
        "context_length": run.whole("ctx_len"),
    }
    if activation == "batchtopk":
        tensors["threshold"] = threshold_given(source).expand(n_layers)
    else:
        fields["activation"] = activation
    return ConvertedSAE(_ARCHITECTURES[activation], tensors, fields, {"dataset": run.text("dataset")}, transcodes=True)


def _shared(settings: list[Settings], source: Source) -> dict[str, Any]:
    """What all layers have in common.

    Raises:
        ValueError: If a layer has another k, width or form, or a form has no counterpart here.
    """
    first = settings[0]
    first.one_of("activation", _ARCHITECTURES, "topk")
    for name in ("secondary_target_tied", "topk_coalesced"):
        if first.flag(name) and (name != "topk_coalesced" or first.get("coalesce_topk", _OF_ITSELF) != _OF_ITSELF):
            raise ValueError(f"{first.called} has {name} = True, which has no counterpart here.")
    if not first.flag("transcode"):
        raise ValueError(f"{first.called} has transcode = False: cross-layer transcoders write elsewhere.")
    facts = ("k", "d_in", "activation", "coalesce_topk", "per_source_tied", "post_encoder_scale", "divide_cross_layer")
    for fact in (*facts, "skip_connection", "normalize_io"):
        if len(found := {str(config.get(fact)) for config in settings}) > 1:
            raise ValueError(f"the layers of {source.path} have {fact} of {', '.join(sorted(found))}, expected one.")
    return {"k": first.whole("k")}


def _layer(source: Source, hook: str, config: Settings, how: str) -> _Layer:
    """One layer's tensors, each accounted for.

    Raises:
        ValueError: If one is missing or of another kind, or it adds or passes on what has no counterpart here.
    """
    stored = source.tensors(WEIGHTS_OF_LAYER.format(hook))
    targets = config.whole("n_targets") or 0
    if targets < 1:
        raise ValueError(f"{config.called} has n_targets = {targets}, expected how many layers it writes at.")
    # Beside those of several targets the first stands once more by itself.
    stored = {name: tensor for name, tensor in stored.items() if f"{name}s.0" not in stored}
    encoder = {"encoder.weight": "encoder.weight", "encoder.bias": "encoder.bias"}
    several = how == _OF_ITSELF
    at = range(targets)
    own_decoders = several and not config.flag("per_source_tied")
    names = {f"W_dec.{i}": f"W_decs.{i}" for i in at} if own_decoders else {"W_dec.0": "W_dec"}
    names |= {f"b_dec.{i}": f"b_decs.{i}" for i in at} if several else {"b_dec.0": "b_dec"}
    if config.flag("post_encoder_scale"):
        names |= {f"scale.{i}": f"post_enc_scales.{i}" for i in at}
    if config.flag("skip_connection"):
        names |= {f"W_skip.{i}": f"W_skips.{i}" for i in at} if several else {"W_skip.0": "W_skip"}
    if config.flag("normalize_io"):
        names |= {"in_norm": "in_norm", "out_norm": "out_norm"}
    added = {f"post_enc.{i}": f"post_encs.{i}" for i in at}
    w = renamed(stored, {**encoder, **names}, source, optional=added)
    if any(tensor.any() for name, tensor in w.items() if name.startswith("post_enc.")):
        raise ValueError(
            f"{hook} of {source.path} adds post_enc to features that are active, which has no counterpart here."
        )
    if any(tensor.any() for name, tensor in w.items() if name.startswith("W_skip.") and name != "W_skip.0"):
        raise ValueError(
            f"{hook} of {source.path} passes what it reads on to later layers, which has no counterpart here: its "
            "W_skips after the first are not 0."
        )
    ones = torch.ones(len(w["encoder.bias"]), dtype=torch.float32)
    return _Layer(
        decoders=[w[name] for name in names if name.startswith("W_dec.")],
        scales=[w.get(f"scale.{i}", ones) for i in at],
        biases=[w[name] for name in names if name.startswith("b_dec.")],
        skip=w.get("W_skip.0"),
        encoder={name: w[name] for name in encoder},
        norms={name: w[name] for name in ("in_norm", "out_norm") if name in w},
    )


def _writing_at(layers: list[_Layer], target: int) -> list[int]:
    """The layers whose features write at one."""
    return [layer for layer in range(target + 1) if target - layer < len(layers[layer].scales)]


def _share(layers: list[_Layer], config: Settings, layer: int, target: int) -> float:
    """What `divide_cross_layer` leaves of a layer's part at a later one."""
    others = len(_writing_at(layers, target)) - 1
    return 1 / max(1, others) if config.flag("divide_cross_layer") and layer != target else 1.0


def _decoders(layers: list[_Layer], how: str, config: Settings, source: Source) -> dict[str, Tensor]:
    """Our decoder tensors: one row a feature with a scale for each layer where rows are the source's, else all rows.

    Raises:
        ValueError: If a decoder has another shape.
    """
    n_layers, (n, d) = len(layers), layers[0].encoder["encoder.weight"].shape
    tied = how == _OF_ITSELF and config.flag("per_source_tied")
    found: dict[str, Tensor] = {}
    for layer, own in enumerate(layers):
        rows, scales = [], []
        for target in range(layer, n_layers):
            writing, at = _writing_at(layers, target), target - layer
            if layer not in writing:
                rows.append(torch.zeros(n, d, dtype=torch.float32))
                scales.append(torch.zeros(n, dtype=torch.float32))
                continue
            if how == _OF_ITSELF:
                decoder = own.decoders[0 if tied else at]
            else:
                decoder = layers[target].decoders[0]
            if how == _OF_PAIRS:
                place = writing.index(layer) * n
                decoder = decoder[place : place + n]
            if tuple(decoder.shape) != (n, d):
                raise ValueError(
                    f"the decoder from layer {layer} to layer {target} of {source.path} has shape "
                    f"{tuple(decoder.shape)}, expected ({n}, {d})."
                )
            divided = own.scales[at] * _share(layers, config, layer, target) if how == _OF_ITSELF else own.scales[at]
            rows.append(decoder * divided[:, None])
            scales.append(divided)
        if tied:
            found[f"W_dec.{layer}"], found[f"decoder_scale.{layer}"] = own.decoders[0], torch.stack(scales, 1)
        else:
            found[f"W_dec.{layer}"] = torch.cat(rows, 1)
    return found


def _biases(layers: list[_Layer], how: str, config: Settings) -> list[Tensor]:
    """What is added at each layer, whichever layer's features bring it along."""
    if how != _OF_ITSELF:
        return [layer.biases[0] for layer in layers]
    return [
        torch.stack(
            [
                layers[layer].biases[target - layer] * _share(layers, config, layer, target)
                for layer in _writing_at(layers, target)
            ]
        ).sum(0)
        for target in range(len(layers))
    ]


def _places(run: Settings, hooks: list[str]) -> dict[str, Any]:
    """Where layers read and write: the inputs of `hookpoints_in`, or of the modules whose outputs are written."""
    base_model = base_model_id(run.text("model"))
    listed = run.get("hookpoints_in") or []
    reads = [f"{hook}.input" for hook in [*listed, *hooks[len(listed) :]]]
    sides = {"hook_point": reads, "target_hook_point": [f"{hook}.output" for hook in hooks]}
    found = {side: join_places(str(canonical(place, base_model)) for place in own) for side, own in sides.items()}
    return {"base_model": base_model, **found}


def _texts(run: Settings, key: str) -> list[str]:
    found = run[key]
    if not isinstance(found, list) or not found or not all(isinstance(item, str) for item in found):
        raise run.unexpected(key, "a list of the layers' folders")
    return found
