"""dictionary_learning: `config.json` with `trainer.dict_class`, and the pickled state dict `ae.pt`."""

import re
from typing import Any

import torch

from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import base_model_id, canonical
from hfsae.interop.settings import Settings
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
    trainer = source.json(CONFIG).get("trainer") if CONFIG in source.listing else None
    return isinstance(trainer, dict) and "dict_class" in trainer


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`.

    Features are those of the stored weights; dictionary_learning's own `AutoEncoder.from_pretrained` rescales them to
    unit decoder columns unless `normalize_decoder=False`.
    """
    config = source.json(CONFIG)
    trainer, buffer = config.section("trainer"), config.section("buffer")
    architecture, names, subtracts = CLASSES[trainer.one_of("dict_class", {name: name for name in CLASSES}, "none")]
    stored = source.tensors(WEIGHTS)
    # TopK's threshold is for another way of encoding, which its own files do not choose.
    known = {"topk": ["k", "threshold"], "batch_topk": ["k"], "matryoshka": ["k", "group_sizes"]}
    tensors = renamed(stored, names, source, known=known.get(architecture, ()))
    base_model = base_model_id(trainer.text("lm_name"))
    fields: dict[str, Any] = {
        "subtract_b_dec": subtracts,
        "base_model": base_model,
        "hook_point": canonical(_place(trainer, buffer), base_model),
        "context_length": buffer.whole("ctx_len"),
        "exclude_special_tokens": buffer.flag("remove_bos"),
    }
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].clamp(min=0)  # theirs takes a ReLU besides
    if architecture in known:
        fields["k"] = _k(stored, trainer, source)
    if architecture == "matryoshka" and "group_sizes" in stored:
        fields |= {"prefix_sizes": torch.as_tensor(stored["group_sizes"]).cumsum(0).tolist(), "prefix_balance": 1.0}
    sizes = {"d_in": trainer.whole("activation_dim"), "n_features": trainer.whole("dict_size")}
    return ConvertedSAE(architecture, tensors, fields, sizes=sizes)


def _k(stored: dict[str, Any], trainer: Settings, source: Source) -> int:
    """How many features are active.

    Raises:
        ValueError: If config and weights disagree, or neither says it.
    """
    said = trainer.whole("k")
    if "k" not in stored:
        return trainer.having("k").whole("k") or 0
    k = int(stored["k"])
    if said not in (None, k) and "k" not in source.given:
        raise ValueError(
            f"{CONFIG} of {source.path} says k = {said}, its weights say k = {k}. Pass the right one: k=...."
        )
    return k


def _place(trainer: Settings, buffer: Settings) -> str | None:
    """The submodule that the trainer names, else the residual stream at its layer."""
    side = "pre" if buffer.get("io") == "in" else "post"
    if match := re.fullmatch(r"([a-z_]+)_layer_?(\d+)", trainer.text("submodule_name") or ""):
        role = _SUBMODULES.get(match[1], match[1])
        return f"{f'resid_{side}' if role == 'resid_post' else role}.{match[2]}"
    return None if trainer.whole("layer") is None else f"resid_{side}.{trainer['layer']}"
