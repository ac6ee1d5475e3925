"""dictionary_learning: `config.json` with `trainer.dict_class`, and the pickled state dict `ae.pt`."""

import re
from typing import Any

import torch

from hfsae.interop.draft import Draft
from hfsae.interop.places import canonical, hub_id
from hfsae.interop.source import Source, renamed

CONFIG, WEIGHTS = "config.json", "ae.pt"

_LINEAR = {"encoder.weight": "encoder.weight", "encoder.bias": "encoder.bias", "W_dec": "decoder.weight.T"}
_MATRICES = {"encoder.weight": "W_enc.T", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_MAGNITUDE = {"magnitude_bias": "mag_bias", "magnitude_log_scale": "r_mag"}
# Each dictionary class: the architecture here, our names of its tensors, and whether b_dec is subtracted.
CLASSES: dict[str, tuple[str, dict[str, str], bool]] = {
    "AutoEncoder": ("standard", {**_LINEAR, "b_dec": "bias"}, True),
    "AutoEncoderNew": ("standard", {**_LINEAR, "b_dec": "decoder.bias"}, False),
    "GatedAutoEncoder": (
        "gated",
        {**_LINEAR, **_MAGNITUDE, "encoder.bias": "gate_bias", "b_dec": "decoder_bias"},
        True,
    ),
    "JumpReluAutoEncoder": ("jumprelu", {**_MATRICES, "threshold": "threshold"}, False),
    "AutoEncoderTopK": ("topk", {**_LINEAR, "b_dec": "b_dec"}, True),
    "BatchTopKSAE": ("batch_topk", {**_LINEAR, "b_dec": "b_dec", "threshold": "threshold"}, True),
    "MatryoshkaBatchTopKSAE": ("matryoshka", {**_MATRICES, "threshold": "threshold"}, True),
}
# What its scripts call a place, in portable names.
_SUBMODULES = {"resid_post": "resid_post", "attention": "attn_out", "mlp": "mlp_out"}


def recognises(source: Source) -> bool:
    """A config with a trainer's section that names a dictionary class."""
    return CONFIG in source.listing and "dict_class" in (source.json(CONFIG).get("trainer") or {})


def read(source: Source) -> Draft:
    """See `hfsae.interop.formats.Format`.

    Features are those of the stored weights; dictionary_learning's own `AutoEncoder.from_pretrained` rescales them to
    unit decoder columns unless `normalize_decoder=False`.
    """
    config = source.json(CONFIG)
    trainer, buffer = config["trainer"], config.get("buffer") or {}
    if trainer["dict_class"] not in CLASSES:
        known = ", ".join(CLASSES)
        raise ValueError(f"{source.path} holds a {trainer['dict_class']}, which is not known; known are {known}.")
    architecture, names, subtracts = CLASSES[trainer["dict_class"]]
    stored = source.tensors(WEIGHTS)
    tensors = renamed(stored, names, source)
    base_model = hub_id(trainer.get("lm_name"))
    fields: dict[str, Any] = {
        "subtract_b_dec": subtracts,
        "base_model": base_model,
        "hook_point": canonical(_place(trainer, buffer), base_model),
        "context_length": buffer.get("ctx_len"),
        "exclude_special_tokens": bool(buffer.get("remove_bos")),
    }
    if "threshold" in tensors:
        tensors["threshold"] = torch.as_tensor(tensors["threshold"]).clamp(min=0)  # theirs takes a ReLU besides
    if architecture in ("topk", "batch_topk", "matryoshka"):
        fields["k"] = int(stored["k"] if "k" in stored else trainer["k"])
    if "group_sizes" in stored:
        fields["prefix_sizes"] = stored["group_sizes"].cumsum(0).tolist()
    return Draft(architecture, tensors, fields)


def _place(trainer: dict[str, Any], buffer: dict[str, Any]) -> str | None:
    """The submodule that the trainer names, else the residual stream at its layer."""
    side = "pre" if buffer.get("io") == "in" else "post"
    if match := re.fullmatch(r"([a-z_]+)_layer_?(\d+)", trainer.get("submodule_name") or ""):
        role = _SUBMODULES.get(match[1], match[1])
        return f"{f'resid_{side}' if role == 'resid_post' else role}.{match[2]}"
    return None if trainer.get("layer") is None else f"resid_{side}.{trainer['layer']}"
