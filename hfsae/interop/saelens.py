"""SAELens, read from all its versions: `cfg.json` and `sae_weights.safetensors`.

Since version 6 the config names an `architecture` and keeps what concerns the language model in `metadata`; before, it
was flat and said less. Sources: the files that SAELens 1 to 6 write and its own handling of old configs.
"""

import logging
from typing import Any

import torch
from torch import Tensor

from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import base_model_id, canonical
from hfsae.interop.positions import excluded_positions
from hfsae.interop.settings import Settings
from hfsae.interop.source import Source, renamed

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

# What SAELens calls an architecture, and what it is here. BatchTopK and Matryoshka are saved as JumpReLU;
# checkpoints of their training say what they are.
_ARCHITECTURES = {
    "standard": "standard",
    "topk": "topk",
    "abstopk": "abs_topk",
    "matching_pursuit": "matching_pursuit",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
    "batchtopk": "batch_topk",
    "matryoshka_batchtopk": "matryoshka",
}
_INPUT_TRANSFORMS = {
    "none": "none",
    "expected_average_only_in": "none",  # a factor that training folds into the weights
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
# Where a TransformerLens model with centred writing weights carries activations of mean 0.
_CENTRED = ("hook_resid", "hook_attn_out", "hook_mlp_out", "hook_embed")

# What it says of language model and text that has no field here; it is kept, and written again.
KEPT = (
    "model_class_name",
    "model_from_pretrained_kwargs",
    "disable_concat_sequences",
    "sequence_separator_token",
    "dataset_trust_remote_code",
    "neuronpedia_id",
    "sae_lens_training_version",
)

_SHARED = {"W_dec": "W_dec", "b_dec": "b_dec"}
_TENSORS = {"encoder.weight": "W_enc.T", **_SHARED}
_GATED = {"encoder.bias": "b_gate", "magnitude_bias": "b_mag", "magnitude_log_scale": "r_mag"}


def recognises(source: Source) -> bool:
    """`cfg.json` beside the weights' file; the weights of sparsify have another name."""
    return CONFIG in source.listing and WEIGHTS in source.listing


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`."""
    config = source.json(CONFIG)
    if not config:
        raise ValueError(f"{config.called} holds no object of settings.")
    if "metadata" not in config:
        config = _modern(config)
    metadata = config.section("metadata")
    architecture = config.one_of("architecture", _ARCHITECTURES, "none")
    if metadata.get("hook_head_index") is not None:
        raise ValueError(f"{source.path} reads a single attention head, which has no hook point of its own here.")
    base_model = base_model_id(metadata.text("model_name"))
    target = metadata.text("hf_hook_name_out") or metadata.text("hook_name_out")
    context_length = metadata.whole("context_size")
    transform = _transform(config, metadata, source)
    tensors = _tensors(architecture, config, source)
    fields: dict[str, Any] = {
        "subtract_b_dec": config.flag("apply_b_dec_to_input", True),
        "input_transform": transform,
        "base_model": base_model,
        "hook_point": canonical(metadata.text("hf_hook_name") or metadata.text("hook_name"), base_model),
        "target_hook_point": canonical(target, base_model),
        "context_length": context_length,
        "prepend_bos": metadata.flag("prepend_bos") if metadata.get("prepend_bos") is not None else None,
        "exclude_special_tokens": bool(_special_tokens(metadata)),
        "exclude_positions": excluded_positions(metadata, source.given.get("context_length") or context_length),
        "skip": "W_skip" in tensors,
    }
    if architecture in ("topk", "abs_topk", "batch_topk", "matryoshka"):
        rescale = config.flag("rescale_acts_by_decoder_norm")
        fields |= {"k": _k(config, architecture), "rescale_by_decoder_norm": rescale}
    if architecture == "matryoshka":
        fields |= {"prefix_sizes": config.wholes("matryoshka_widths"), "prefix_balance": 1.0}
    if architecture == "matching_pursuit":
        fields |= _pursuit(config, tensors)
    sizes = {"d_in": config.whole("d_in"), "n_features": config.whole("d_sae"), "d_out": config.whole("d_out")}
    return ConvertedSAE(
        architecture,
        tensors,
        fields,
        _facts(metadata),
        sizes=sizes,
        dtype=config.text("dtype"),
        transcodes="transcoder" in config["architecture"],
    )


def _transform(config: Settings, metadata: Settings, source: Source) -> str:
    """What happens to activations first."""
    transform = config.one_of("normalize_activations", _INPUT_TRANSFORMS, "none")
    if config.get("normalize_activations") == "expected_average_only_in":
        logger.warning(
            "%s was trained on scaled activations and does not say by which factor. It is read as SAELens reads it: "
            "with a factor of 1. If features look wrong, set sae.input_scale.",
            source.path,
        )
    centred = metadata.section("model_from_pretrained_kwargs").flag("center_writing_weights")
    return "center" if transform == "none" and centred and _is_centred(metadata.text("hook_name") or "") else transform


def _special_tokens(metadata: Settings) -> bool | list[int] | None:
    """Whether special tokens were left out, or the ids of the ones that were."""
    said = metadata.get("exclude_special_tokens")
    return (
        metadata.wholes("exclude_special_tokens")
        if isinstance(said, list)
        else metadata.flag("exclude_special_tokens")
    )


def _facts(metadata: Settings) -> dict[str, Any]:
    """What a config here has no field for: where the text came from, and policies that are written again."""
    kept = {key: metadata[key] for key in KEPT if metadata.get(key) is not None}
    if isinstance(metadata.get("exclude_special_tokens"), list):
        kept["exclude_special_tokens"] = metadata["exclude_special_tokens"]
    said = {"dataset": metadata.text("dataset_path"), "sae_lens_version": metadata.text("sae_lens_version")}
    return {**said, "sae_lens_metadata": kept or None}


def _k(config: Settings, architecture: str) -> int:
    """How many features are active; an average, which need not be whole, where a batch shares them."""
    if architecture in ("topk", "abs_topk"):
        return config.having("k").whole("k") or 0
    return max(1, round(config.having("k").number("k") or 0))


def _pursuit(config: Settings, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """How a matching pursuit ends; without `apply_b_dec_to_input` SAELens does not use its `b_dec` at all."""
    if not config.flag("apply_b_dec_to_input", True):
        tensors["b_dec"] = torch.zeros_like(tensors["b_dec"])
    threshold = config.number("residual_threshold")
    return {
        "k": config.whole("max_iterations") or tensors["W_dec"].shape[1],
        "residual_threshold": 1e-2 if threshold is None else threshold,
        "stop_on_duplicate": config.flag("stop_on_duplicate_support", True),
        "subtract_b_dec": True,
    }


def tensor_names(architecture: str) -> dict[str, str]:
    """What every SAE of an architecture holds, by our names."""
    if architecture == "matching_pursuit":
        return _SHARED
    return {**_TENSORS, **(_GATED if architecture == "gated" else {"encoder.bias": "b_enc"})}


def _tensors(architecture: str, config: Settings, source: Source) -> dict[str, Tensor]:
    stored = source.tensors(WEIGHTS)
    names = dict(tensor_names(architecture))
    if architecture == "jumprelu":
        names["threshold"] = "threshold"
    if architecture in ("batch_topk", "matryoshka"):
        names["threshold"] = "topk_threshold"
    optional = {"W_skip": "W_skip"} if "skip" in config["architecture"] else {}
    tensors = renamed(stored, names, source, optional=optional, known=["scaling_factor"])
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].clamp(min=0)  # SAELens takes a ReLU besides
    if "scaling_factor" in stored:
        factor = renamed(stored, {"factor": "scaling_factor"}, source, known=["*"])["factor"]
        if config.get("finetuning_scaling_factor") is False and (factor != 1).any():
            raise ValueError(
                f"{source.path} holds a scaling_factor that is not 1, and its {CONFIG} says that it has none "
                "(finetuning_scaling_factor is false)."
            )
        tensors["W_dec"] = tensors["W_dec"] * factor.reshape(-1, 1)
    return tensors


def _modern(config: Settings) -> Settings:
    """A config of before version 6 in the form of version 6."""
    activation = config.text("activation_fn_str") or config.text("activation_fn") or "relu"
    architecture = config.get("architecture") or "standard"
    if activation == "topk":
        architecture = "topk"
    elif activation != "relu":
        raise ValueError(f"an SAE of SAELens with the activation function {activation!r} has no counterpart here.")
    normalisation = config.get("normalize_activations") or "none"
    modern = {
        **config,
        "architecture": architecture,
        "normalize_activations": "expected_average_only_in" if normalisation is True else normalisation,
        "k": config.section("activation_fn_kwargs").whole("k"),
        "metadata": {
            "prepend_bos": True,
            **config,
            "hook_name": config.get("hook_name") or config.get("hook_point"),
            "hook_head_index": config.get("hook_head_index", config.get("hook_point_head_index")),
        },
    }
    return Settings(modern, config.called)


def _is_centred(hook_name: str) -> bool:
    return any(name in hook_name for name in _CENTRED)
