"""Llama Scope R1: `config.json` and `sae_weights.safetensors`, thresholds stored as logarithms."""

from hfsae.interop.converted import ConvertedSAE
from hfsae.interop.foreign_names import base_model_id
from hfsae.interop.llama_scope import LINEAR, dataset_scales, said, where
from hfsae.interop.settings import Settings
from hfsae.interop.source import Source, renamed

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
_NORM = "dataset_average_activation_norm"
_BASE_MODEL = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


def recognises(source: Source) -> bool:
    """A config of OpenMOSS without the `sae_type` of its later versions."""
    if CONFIG not in source.listing or WEIGHTS not in source.listing:
        return False
    config = source.json(CONFIG)
    return "hook_point_in" in config and "sae_type" not in config


def read(source: Source) -> ConvertedSAE:
    """See `hfsae.interop.formats.Format`."""
    config, stored = source.json(CONFIG), source.tensors(WEIGHTS)
    tensors = renamed(stored, {**LINEAR, "threshold": "log_jumprelu_threshold"}, source, known=[f"{_NORM}.*"])
    tensors["threshold"] = tensors["threshold"].float().exp()
    base_model = base_model_id(config.text("model_name")) or (_BASE_MODEL if "R1-Distill" in source.path else None)
    fields = {
        **where(config, base_model),
        "context_length": 1024,
        "prepend_bos": True,
        "exclude_special_tokens": False,
    }
    scales = dataset_scales(_norms(config, stored), config, fields)
    return ConvertedSAE("jumprelu", {**tensors, **scales}, fields, **said(config))


def _norms(config: Settings, stored: dict) -> dict[str, float | None]:
    """Mean norms of the activations: from the config, or from tensors named after the hooks."""
    if recorded := config.section(_NORM):
        return {side: recorded.number(side) for side in recorded}
    if (reads := stored.get(f"{_NORM}.{config['hook_point_in']}")) is None:
        return {}
    return {"in": float(reads), "out": float(stored.get(f"{_NORM}.{config.get('hook_point_out')}", reads))}
