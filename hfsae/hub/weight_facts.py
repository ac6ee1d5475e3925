"""What a card says about the weights themselves."""

from dataclasses import dataclass

import torch

from hfsae.autoencoder.model import SparseAutoencoder

_UNIT_TOLERANCE = 0.01  # rows of a bfloat16 W_dec are this close to unit norm


@dataclass(frozen=True)
class WeightFacts:
    """Scales and norms.

    Args:
        input_scales: What activations are multiplied by before they are encoded: one number, or one a source.
        output_scales: What a transcoder's reconstruction is divided by, at each layer; none for an autoencoder.
        smallest_row: The least norm among the rows of `W_dec`.
        largest_row: The greatest.
    """

    input_scales: list[float]
    output_scales: list[float]
    smallest_row: float
    largest_row: float

    @classmethod
    def of(cls, sae: SparseAutoencoder) -> "WeightFacts":
        """The facts about an SAE."""
        norms = torch.cat([rows.detach().float().norm(dim=1) for rows in sae.decoder_weights])
        output_scales = sae.get_tensor("output_scale").flatten().tolist() if sae.config.is_transcoder else []
        return cls(sae.input_scale.flatten().tolist(), output_scales, float(norms.min()), float(norms.max()))

    @property
    def unit_rows(self) -> bool:
        """Whether all rows of `W_dec` have unit norm, up to rounding."""
        return max(abs(self.smallest_row - 1), abs(self.largest_row - 1)) <= _UNIT_TOLERANCE
