"""The same SAE with another number of active features a token: other settings, the same weights."""

import copy
from typing import TypeVar

from torch import Tensor

from hfsae.autoencoder.model import SparseAutoencoder

SomeSAE = TypeVar("SomeSAE", bound=SparseAutoencoder)


def with_k(sae: SomeSAE, k: int, activations: Tensor | None = None) -> SomeSAE:
    """See `hfsae.SAE.with_k`."""
    config = sae.config
    if not hasattr(config, "k"):
        raise ValueError(f"{config.architecture} has no k: how many features are active follows from its weights.")
    most = getattr(config, "features_per_layer", config.n_features)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= most:
        raise ValueError(f"k must be a whole number from 1 to {most}, the features it chooses among, got {k!r}.")
    if (activations is None) == sae.needs_calibration:
        raise ValueError(
            f"{config.architecture} has a threshold that belongs to its k={config.k}: "  # type: ignore[attr-defined]
            f"give activations to find that of {k} from, sae.with_k({k}, activations)."
            if activations is None
            else f"{config.architecture} has no threshold to find: use sae.with_k({k}), without activations."
        )
    if isinstance(activations, Tensor) and not activations.numel():
        raise ValueError(f"there is no activation among those given, to find the threshold of k={k} from.")
    other = _sharing_weights(sae)
    other.config.k, other.config.metrics = k, None  # type: ignore[attr-defined]
    if activations is not None:
        other.calibrate(lambda: [activations])
    return other


def _sharing_weights(sae: SomeSAE) -> SomeSAE:
    """An SAE of the same parameters, with a config and buffers of its own."""
    other = copy.copy(sae)
    other._parameters, other._modules = dict(sae._parameters), dict(sae._modules)
    other._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in sae._buffers.items()}
    other.config = copy.deepcopy(sae.config)
    return other
