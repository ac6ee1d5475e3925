"""Llama Scope R1: `config.json` and `sae_weights.safetensors`, thresholds stored as logarithms."""

from hfsae.interop.draft import Draft
from hfsae.interop.llama_scope import LINEAR, dataset_scales, where
from hfsae.interop.places import hub_id
from hfsae.interop.source import Source, renamed

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
_BASE_MODEL = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


def recognises(source: Source) -> bool:
    """A config of OpenMOSS without the `sae_type` of its later versions."""
    if CONFIG not in source.listing or WEIGHTS not in source.listing:
        return False
    config = source.json(CONFIG)
    return "hook_point_in" in config and "sae_type" not in config


def read(source: Source) -> Draft:
    """See `hfsae.interop.formats.Format`."""
    config, stored = source.json(CONFIG), source.tensors(WEIGHTS)
    tensors = renamed(stored, {**LINEAR, "threshold": "log_jumprelu_threshold"}, source)
    tensors["threshold"] = tensors["threshold"].float().exp()
    base_model = hub_id(config.get("model_name")) or (_BASE_MODEL if "R1-Distill" in source.path else None)
    fields = {
        **where(config, base_model),
        "context_length": 1024,
        "prepend_bos": True,
        "exclude_special_tokens": False,
    }
    return Draft("jumprelu", {**tensors, **dataset_scales(_norms(config, stored), config, fields)}, fields)


def _norms(config: dict, stored: dict) -> dict[str, float] | None:
    """Mean norms of the activations: from the config, or from tensors named after the hooks."""
    if recorded := config.get("dataset_average_activation_norm"):
        return recorded
    name = "dataset_average_activation_norm."
    if (reads := stored.get(name + config["hook_point_in"])) is None:
        return None
    return {"in": float(reads), "out": float(stored.get(name + (config.get("hook_point_out") or ""), reads))}
