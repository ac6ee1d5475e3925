"""Llamascopium, OpenMOSS' Language-Model-SAEs as it saves now: `config.json` and `sae_weights.safetensors`."""

from typing import Any

from torch import Tensor

from hfsae.interop import llamascopium_layers
from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import base_model_id
from hfsae.interop.llama_scope import dataset_scales, said, where
from hfsae.interop.llamascopium_layers import activation_of, refuse_unequal_norms, threshold_given
from hfsae.interop.settings import Settings
from hfsae.interop.source import Source, renamed

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"

_ARCHITECTURES = {"relu": "standard", "jumprelu": "jumprelu", "topk": "topk", "batchtopk": "batch_topk"}
_NORM = "dataset_average_activation_norm"
_THRESHOLD = "activation_function.log_jumprelu_threshold"


def recognises(source: Source) -> bool:
    """A config with `sae_type`."""
    return CONFIG in source.listing and WEIGHTS in source.listing and "sae_type" in source.json(CONFIG)


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`."""
    config, stored = source.json(CONFIG), source.tensors(WEIGHTS)
    if (reader := llamascopium_layers.READERS.get(str(config["sae_type"]))) is not None:
        return reader(config, stored, source)
    config.one_of("sae_type", dict.fromkeys(("sae", "transcoder", *llamascopium_layers.READERS), ""), "none")
    activation = activation_of(config, _ARCHITECTURES)
    architecture = _ARCHITECTURES[activation]
    if config.flag("use_glu_encoder"):
        raise ValueError(f"{source.path} has a gated linear encoder, which has no counterpart here.")
    fields: dict[str, Any] = {
        **where(config, base_model_id(config.text("model_name"))),
        "context_length": config.whole("context_size"),
    }
    names = {"encoder.weight": "W_E.T", "encoder.bias": "b_E", "W_dec": "W_D"}
    if activation == "jumprelu":
        names["threshold"] = _THRESHOLD
    tensors = renamed(stored, names, source, optional={"b_dec": "b_D"}, known=[f"{_NORM}.*"])
    if "topk" in activation:
        fields["k"] = config.having("top_k").whole("top_k")
    if activation == "batchtopk":
        tensors["threshold"] = threshold_given(source)
    if activation == "jumprelu":
        tensors["threshold"] = tensors["threshold"].float().exp()
    if config.flag("sparsity_include_decoder_norm"):
        _select_by_norm(activation, tensors, source)
    tensors |= _scales(config, stored, fields, source)
    return ConvertedSAE(architecture, tensors, fields, **said(config))


def _select_by_norm(activation: str, tensors: dict[str, Tensor], source: Source) -> None:
    """Features there are chosen at `h · ‖row‖` and reported at h; the same as a threshold divided by the norm."""
    norm = tensors["W_dec"].float().norm(dim=1)
    if activation == "jumprelu":
        tensors["threshold"] = tensors["threshold"] / norm
    elif "topk" in activation:
        refuse_unequal_norms(norm, source)


def _scales(config: Settings, stored: dict[str, Tensor], fields: dict[str, Any], source: Source) -> dict[str, Tensor]:
    """What `norm_activation` does to activations."""
    kind = config.get("norm_activation", "inference")
    if kind in ("inference", "none", None):
        return {}
    if kind == "token-wise":
        fields["input_transform"] = "constant_norm"
        return {}
    if kind != "dataset-wise":
        raise ValueError(f"{source.path} has norm_activation = {kind!r}, which depends on the batch.")
    hooks = {"in": config["hook_point_in"], "out": config.get("hook_point_out") or config["hook_point_in"]}
    norms = renamed(stored, {side: f"{_NORM}.{hook}" for side, hook in hooks.items()}, source, known=["*"])
    return dataset_scales({side: float(norm) for side, norm in norms.items()}, config, fields)
