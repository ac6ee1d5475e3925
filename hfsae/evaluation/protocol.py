"""What stands beside figures so that they count: how, on what, and of which weights they were measured."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.configuration import LANGUAGE_MODEL, SAEConfig
from hfsae.versions import version_of

# What a config says that no figure depends on: how the language model is called, and what training alone reads.
_BESIDE = {
    *(option.name for option in fields(PreTrainedConfig)),  # type: ignore[arg-type]
    *LANGUAGE_MODEL,
    *("source_models", "context_length", "scale_inputs", "training", "metrics", "defined_in"),
}


def weights_sha256(sae: SparseAutoencoder) -> str:
    """A digest of an SAE's stored tensors: metrics with another digest belong to other weights.

    It covers every tensor's name, dtype, shape and bytes in the order of names. So it does not depend on the file
    format, the device or the library versions.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        header = f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        # The lengths in front keep one part's end and the next one's beginning apart.
        for part in (header, content):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def measured_digest(config: SAEConfig) -> str | None:
    """The digest of the weights that a config's metrics were measured on; None where it was not recorded."""
    digest = _recorded(config, "weights_sha256")
    return digest if isinstance(digest, str) else None


def settings_of(config: SAEConfig) -> dict[str, Any]:
    """What a config says that figures depend on: what is computed, where, and on which tokens; in plain values."""
    names = [option.name for option in fields(config) if option.name not in _BESIDE]
    return json.loads(json.dumps({name: getattr(config, name) for name in names}))


def changed_settings(config: SAEConfig, measured: Any = None) -> list[str]:
    """The settings that differ from the measured ones: figures with others belong to another SAE.

    Args:
        config: The SAE's config.
        measured: The settings that were measured; None: what the record in the config's own metrics says. Records of
            earlier versions have none, so that nothing is known to have changed.
    """
    if measured is None:
        measured = _recorded(config, "settings")
    if not isinstance(measured, Mapping):
        return []
    return [name for name, value in settings_of(config).items() if name in measured and measured[name] != value]


def has_stale_figures(config: SAEConfig, weights_digest: str | None) -> bool:
    """Whether a config's metrics are of other weights or settings than the present ones, as far as is known.

    Args:
        config: The SAE's config.
        weights_digest: The digest of its weights; None where it is not known.
    """
    other_weights = weights_digest is not None and measured_digest(config) not in (None, weights_digest)
    return other_weights or bool(changed_settings(config))


def _recorded(config: SAEConfig, name: str) -> Any:
    protocol = (config.metrics or {}).get("protocol")
    return protocol.get(name) if isinstance(protocol, Mapping) else None


def protocol_of(
    sae: SparseAutoencoder, model: PreTrainedModel, measured: Mapping[str, Any], given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The protocol of an evaluation, in plain values.

    Args:
        sae: What was measured.
        model: The language model it was measured in.
        measured: What the evaluation knows: counts, context length, what was left out, the ablation.
        given: What only the caller knows (`dataset`, `split`, ...); wins over everything else.
    """
    return {
        "dataset": None,
        "split": None,
        **measured,
        "dtype": _dtypes(sae, model),
        **versions(),
        "weights_sha256": weights_sha256(sae),
        "settings": settings_of(sae.config),
        **(given or {}),
    }


def versions() -> dict[str, str | None]:
    """The versions of what measures."""
    return {f"{name}_version": version_of(name) for name in ("hfsae", "transformers", "torch")}


def _dtypes(sae: SparseAutoencoder, model: PreTrainedModel) -> str:
    language_model, autoencoder = (str(dtype).removeprefix("torch.") for dtype in (model.dtype, sae.dtype))
    return language_model if language_model == autoencoder else f"{language_model} (SAE: {autoencoder})"
