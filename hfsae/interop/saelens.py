"""SAELens, read from all its versions: `cfg.json` and `sae_weights.safetensors`.

Since version 6 the config names an `architecture` and keeps what concerns the language model in `metadata`; before, it
was flat and said less. Sources: the files that SAELens 1 to 6 write and its own handling of old configs.
"""

import logging
from typing import Any

from torch import Tensor

from hfsae.interop.draft import Draft
from hfsae.interop.places import canonical, hub_id
from hfsae.interop.source import Source, renamed

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

# What SAELens calls an architecture, and what it is here. BatchTopK and Matryoshka are saved as JumpReLU.
_ARCHITECTURES = {
    "standard": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
_INPUT_TRANSFORMS = {
    "none": "none",
    "expected_average_only_in": "none",  # a factor that training folds into the weights
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
# Where a TransformerLens model with centred writing weights carries activations of mean 0.
_CENTRED = ("hook_resid", "hook_attn_out", "hook_mlp_out", "hook_embed")

TENSORS = {"encoder.weight": "W_enc.T", "W_dec": "W_dec", "b_dec": "b_dec"}
GATED = {"encoder.bias": "b_gate", "magnitude_bias": "b_mag", "magnitude_log_scale": "r_mag"}


def recognises(source: Source) -> bool:
    """`cfg.json` beside the weights' file; the weights of sparsify have another name."""
    return CONFIG in source.listing and WEIGHTS in source.listing


def read(source: Source) -> Draft:
    """See `hfsae.interop.formats.Format`."""
    config = source.json(CONFIG)
    if "metadata" not in config:
        config = _modern(config)
    metadata = config["metadata"]
    architecture = _known(config, "architecture", _ARCHITECTURES, source)
    transform = _known(config, "normalize_activations", _INPUT_TRANSFORMS, source)
    if metadata.get("hook_head_index") is not None:
        raise ValueError(f"{source.path} reads a single attention head, which has no hook point of its own here.")
    if config.get("normalize_activations") == "expected_average_only_in":
        logger.warning(
            "%s was trained on scaled activations and does not say by which factor. It is read as SAELens reads it: "
            "with a factor of 1. If features look wrong, set sae.input_scale.",
            source.path,
        )
    base_model = hub_id(metadata.get("model_name"))
    hook_name = metadata.get("hook_name") or ""
    kwargs = metadata.get("model_from_pretrained_kwargs") or {}
    if transform == "none" and kwargs.get("center_writing_weights") and _is_centred(hook_name):
        transform = "center"
    tensors = source.tensors(WEIGHTS)
    fields: dict[str, Any] = {
        "subtract_b_dec": bool(config.get("apply_b_dec_to_input", True)),
        "input_transform": transform,
        "base_model": base_model,
        "hook_point": canonical(metadata.get("hf_hook_name") or hook_name, base_model),
        "target_hook_point": canonical(metadata.get("hf_hook_name_out") or metadata.get("hook_name_out"), base_model),
        "context_length": metadata.get("context_size"),
        "prepend_bos": metadata.get("prepend_bos"),
        "exclude_special_tokens": bool(metadata.get("exclude_special_tokens")),
        "skip": "W_skip" in tensors,
    }
    if architecture == "topk":
        fields |= {"k": int(config["k"]), "rescale_by_decoder_norm": bool(config.get("rescale_acts_by_decoder_norm"))}
    facts = {"dataset": metadata.get("dataset_path"), "sae_lens_version": metadata.get("sae_lens_version")}
    return Draft(architecture, _tensors(architecture, tensors, source), fields, facts)


def _tensors(architecture: str, stored: dict[str, Tensor], source: Source) -> dict[str, Tensor]:
    names = {**TENSORS, **(GATED if architecture == "gated" else {"encoder.bias": "b_enc"})}
    if architecture == "jumprelu":
        names["threshold"] = "threshold"
    if "W_skip" in stored:
        names["W_skip"] = "W_skip"
    tensors = renamed(stored, names, source)
    if architecture == "jumprelu":
        tensors["threshold"] = tensors["threshold"].clamp(min=0)  # SAELens takes a ReLU besides
    if "scaling_factor" in stored:
        tensors["W_dec"] = tensors["W_dec"] * stored["scaling_factor"][:, None]
    return tensors


def _modern(config: dict[str, Any]) -> dict[str, Any]:
    """A config of before version 6 in the form of version 6."""
    activation = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    architecture = config.get("architecture") or "standard"
    if activation == "topk":
        architecture = "topk"
    elif activation != "relu":
        raise ValueError(f"an SAE of SAELens with the activation function {activation!r} has no counterpart here.")
    normalisation = config.get("normalize_activations") or "none"
    return {
        "apply_b_dec_to_input": config.get("apply_b_dec_to_input", True),
        "architecture": architecture,
        "normalize_activations": "expected_average_only_in" if normalisation is True else normalisation,
        "k": (config.get("activation_fn_kwargs") or {}).get("k"),
        "metadata": {
            "prepend_bos": True,
            **config,
            "hook_name": config.get("hook_name") or config.get("hook_point"),
            "hook_head_index": config.get("hook_head_index", config.get("hook_point_head_index")),
        },
    }


def _known(config: dict[str, Any], key: str, table: dict[str, str], source: Source) -> str:
    value = config.get(key) or "none"
    if value not in table:
        known = ", ".join(name for name in table)
        raise ValueError(f"{source.path} has {key} = {value!r}, which has no counterpart here; known are {known}.")
    return table[value]


def _is_centred(hook_name: str) -> bool:
    return any(name in hook_name for name in _CENTRED)
