"""Which SAE a file belongs to that is kept beside it: one with these weights, and with the settings that count."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.configuration import LANGUAGE_MODEL, SAEConfig
from hfsae.differences import differences

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


def settings_of(config: SAEConfig) -> dict[str, Any]:
    """What a config says that figures depend on: what is computed, where, and on which tokens; in plain values."""
    names = [option.name for option in fields(config) if option.name not in _BESIDE]
    return json.loads(json.dumps({name: getattr(config, name) for name in names}))


def changed(now: Mapping[str, Any], before: Any) -> list[str]:
    """The settings that differ, as far as both are known.

    Args:
        now: What `settings_of` says.
        before: What a record says, which somebody else may have written.
    """
    if not isinstance(before, Mapping):
        return []
    return [name for name, value in now.items() if name in before and before[name] != value]


class Identity(NamedTuple):
    """Which SAE a file that is kept belongs to: one with these weights and settings.

    Attributes:
        weights_sha256: The digest of its weights.
        settings: What `settings_of` says of its config; None where nobody knows, as of files of earlier versions.
    """

    weights_sha256: str
    settings: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, sae: SparseAutoencoder) -> "Identity":
        """That of an SAE."""
        return cls(weights_sha256(sae), settings_of(sae.config))

    def record(self) -> dict[str, Any]:
        """What a file says of it; nothing of settings that are not known."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def unlike(self, kept: Mapping[str, Any]) -> str | None:
        """What a file is of instead, in words; None where it is of this SAE, as far as is known.

        Args:
            kept: What the file says: `weights_sha256`, and since there are `settings` these too.
        """
        digest = kept.get("weights_sha256")
        if digest != self.weights_sha256:
            return f"other weights (SHA-256 {str(digest)[:12]}) than these ({self.weights_sha256[:12]})"
        now, before = self.settings or {}, kept.get("settings") or {}
        if names := changed(now, before):
            return f"other settings than these ({'; '.join(differences(before, now, names))})"
        return None
