"""What stands beside every headline figure: an SAE that learned nothing, and the best linear map of the same size.

A wide enough random dictionary recovers a lot by itself, so a figure means something only beside these. Both are
measured by the very functions that measure the SAE.
"""

import copy

import torch
from torch import Tensor

from hfsae.functional import SparseFeatures
from hfsae.initialisation import initialise
from hfsae.modeling import SAE
from hfsae.outputs import SAEOutput

_SEED = 0


def untrained(sae: SAE, activations: Tensor) -> SAE:
    """An SAE of the same shape before its first training step: random features, mean-centred, one fitted gain.

    Args:
        sae: An autoencoder.
        activations: (N, d_in) of text that is not evaluated, some thousands.

    Returns:
        A new SAE on the same device, the same for the same config and activations.
    """
    # Seeded apart, so that whoever evaluates in the middle of a run does not change its course.
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        fresh = SAE.from_config(copy.deepcopy(sae.config), dtype=torch.float32)
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
