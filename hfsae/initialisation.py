"""Where an SAE starts, once the first activations are seen: scale, centre, thresholds and encoder gain.

The same start, untrained, is the baseline that belongs beside every headline figure: a wide random dictionary
recovers a lot by itself.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from hfsae.modeling import SAE

Center = Literal["geometric_median", "mean"]


@torch.no_grad()
def initialise(sae: SAE, activations: Tensor, center: Center = "geometric_median") -> SAE:
    """Fits everything about a fresh SAE that depends on the data.

    In this order: `input_scale` = √d / mean‖x‖ (where `config.scale_inputs`), `b_dec` = centre of the scaled
    activations, thresholds, and one factor on `W_e` that makes the least-squares gain
    ⟨x̂ − b_dec, x̃⟩ / ‖x̂ − b_dec‖² equal 1: tied unit rows at 16x otherwise give x̂ ≈ 8 x̃, an initial error of many
    times the variance.

    Args:
        sae: A freshly initialised SAE.
        activations: (N, d_in), some thousands, the same on every process.
        center: `"geometric_median"` (robust to outliers) or `"mean"`.

    Returns:
        The SAE itself.

    Raises:
        ValueError: If there are no activations or only zeros or not all are finite, or the SAE is a transcoder: what
            is fitted here is that the input comes back.
    """
    if sae.config.is_transcoder:
        raise ValueError(f"initialise() starts autoencoders; this SAE writes at {sae.config.target_hook_point}.")
    if not len(activations):
        raise ValueError("initialise() needs activations: some thousands of tokens, got none.")
    x = activations.to(sae.W_dec.device, sae.W_dec.dtype)
    if sae.config.scale_inputs:
        sae.input_scale.fill_(1.0)
        mean_norm = sae.scaled(x).norm(dim=1).mean().item()
        if not 0 < mean_norm < math.inf:
            raise ValueError(
                f"initialise() needs finite activations, not all of them 0: their mean norm is {mean_norm}."
            )
        sae.input_scale.fill_(sae.config.d_in**0.5 / mean_norm)
    scaled = sae.scaled(x)
    sae.b_dec.copy_(scaled.mean(0) if center == "mean" else geometric_median(scaled))
    sae.start_from(scaled)
    sae.encoder.weight.mul_(_gain(sae, scaled))
    sae.start_from(scaled)
    return sae


def _gain(sae: SAE, scaled: Tensor) -> Tensor:
    """The factor on the features that brings the reconstruction closest to the activations."""
    pattern, pre = sae._encode(scaled, sae.training_selection(), path="auto")
    written = pattern.decode(sae.activation(pattern, pre), sae.decoder_rows).float()
    gain = (written * (scaled - sae.b_dec).float()).sum() / written.square().sum()
    return torch.where(gain.isfinite() & (gain > 0), gain, 1.0).to(scaled.dtype)


def geometric_median(points: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point with the least summed distance to all others, by Weiszfeld's iteration.

    Args:
        points: (N, d).
        iterations: At most so many.
        tolerance: Ends when the point moves by less than this share of the points' mean distance from it.

    Returns:
        (d,).
    """
    median = points.mean(0)
    for _ in range(iterations):
        distance = (points - median).norm(dim=1).clamp(min=1e-12)
        weight = 1 / distance
        moved = (weight @ points) / weight.sum()
        step = (moved - median).norm()
        median = moved
        if step < tolerance * distance.mean():
            break
    return median
