"""What stands beside figures so that they count: how, on what, and of which weights they were measured."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.configuration import SAEConfig
from hfsae.identity import changed, settings_of, weights_sha256
from hfsae.versions import version_of


def measured_digest(config: SAEConfig) -> str | None:
    """The digest of the weights that a config's metrics were measured on; None where it was not recorded."""
    digest = _recorded(config, "weights_sha256")
    return digest if isinstance(digest, str) else None


def changed_settings(config: SAEConfig, measured: Any = None) -> list[str]:
    """The settings that differ from the measured ones: figures with others belong to another SAE.

    Args:
        config: The SAE's config.
        measured: The settings that were measured; None: what the record in the config's own metrics says. Records of
            earlier versions have none, so that nothing is known to have changed.
    """
    if measured is None:
        measured = _recorded(config, "settings")
    return changed(settings_of(config), measured)


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
