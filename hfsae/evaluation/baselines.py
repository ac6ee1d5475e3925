"""What stands beside every headline figure: an SAE that learned nothing, and the best linear map of the same size.

A wide enough random dictionary recovers a lot by itself, so a figure means something only beside these. Both use as
many numbers a token as the SAE has active features, and are measured by the very functions that measure it.
"""

from typing import Any

import torch
from torch import Tensor

from hfsae.autoencoder.initialisation import initialise
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.outputs import SAEOutput
from hfsae.autoencoder.registry import config_class_of
from hfsae.functional import SparseFeatures

_SEED = 0


def untrained(sae: SparseAutoencoder, activations: Tensor, k: int) -> SparseAutoencoder:
    """An SAE of the same width that learned nothing: random features, mean-centred, one fitted gain.

    Whatever the SAE's own rule, the k strongest features of every token are active. Under the rule of an architecture
    with a penalty, half of all features would be active before training, and the comparison would say nothing.

    Args:
        sae: An autoencoder.
        activations: (N, d_in) of text that is not evaluated, some thousands.
        k: How many features the trained SAE has active.

    Returns:
        A new SAE on the same device, the same for the same arguments.
    """
    fields: dict[str, Any] = {
        "d_in": sae.config.d_in,
        "n_features": sae.config.n_features,
        "k": min(k, sae.config.n_features),
        "input_transform": sae.config.input_transform,
    }
    config = config_class_of("topk")(**fields)
    # Seeded apart, so that whoever evaluates in the middle of a run does not change its course.
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        fresh = SparseAutoencoder.from_config(config)
    return initialise(fresh.to(sae.device).eval(), activations, center="mean")  # type: ignore[arg-type]


class PCA:
    """Reconstructs from the coordinates along the directions of greatest variance.

    Called like an SAE; its features are the coordinates, of which it uses as many as it has on every token.

    Args:
        activations: (N, d_in) to fit it on, of text that is not evaluated.
        components: Number of directions, from 1 to d_in.
    """

    def __init__(self, activations: Tensor, components: int):
        x = activations.double()
        self.mean = x.mean(0)
        covariance = (x - self.mean).T @ (x - self.mean)
        # Eigenvalues come in ascending order.
        self.directions = torch.linalg.eigh(covariance).eigenvectors[:, -components:].T.float()
        self.mean = self.mean.float()

    @property
    def components(self) -> int:
        """Number of directions."""
        return len(self.directions)

    @torch.no_grad()
    def __call__(self, activations: Tensor) -> SAEOutput:
        """The reconstruction of (N, d_in) activations and the coordinates it is made of."""
        coordinates = (activations.float() - self.mean) @ self.directions.T
        reconstruction = coordinates @ self.directions + self.mean
        return SAEOutput(reconstruction=reconstruction, features=SparseFeatures.from_dense(coordinates))  # type: ignore[arg-type]
