"""Where an SAE starts, once the first activations are seen: scales, centre, thresholds and encoder gain.

The same start, untrained, is the baseline that belongs beside every headline figure: a wide random dictionary
recovers a lot by itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.functional.alignment import align
from hfsae.functional.massive_tokens import directions_apart

# What the features of a fresh transcoder write together, as a share of the target's spread. After 600,000 tokens
# (embedded language model, mlp_in.1 to mlp_out.1, 16x, k = 32) shares of 1, 0.3, 0.1, 0.03 and 0.01 left 77, 51, 22,
# 15 and 15 % of jumprelu's features dead and explained 0.914, 0.962, 0.968, 0.970 and 0.970. Decoder rows that start
# along Σ z (y − b_dec), the gradient of a decoder that is 0: 54 % and 0.962.
_TRANSCODER_WRITES = 0.03

# One number is fitted by this many tokens to 1 %.
_GAIN_TOKENS = 4096
# How far biases are lowered is found by so many halvings, each of which encodes so many tokens.
_ALIGNING_HALVINGS, _ALIGNING_TOKENS = 12, 1024

Center = Literal["geometric_median", "mean"]


@torch.no_grad()
def initialise(
    sae: SparseAutoencoder,
    activations: Tensor,
    center: Center = "geometric_median",
    target: Tensor | None = None,
    active: int | None = None,
) -> SparseAutoencoder:
    """Fits everything about a fresh SAE that depends on the data.

    In this order:

    * `input_scale` = √d / mean‖x‖ (where `config.scale_inputs`)
    * `b_dec` = centre of the scaled activations
    * thresholds
    * one factor on `W_e` that makes the least-squares gain ⟨x̂ − b_dec, x̃⟩ / ‖x̂ − b_dec‖² equal 1
    * a feature for each direction of massive tokens (`massive_tokens.directions_apart`), which others leave out

    Without that factor tied unit rows at 16x give x̂ ≈ 8 x̃, an initial error of many times the variance. Rows that are
    to be aligned take no factor: there all biases are lowered until the gain is 1.

    Of a transcoder `output_scale` and `b_dec` are those of its target. Its random rows say nothing of how to get there
    from what it reads, so features start next to 0. Together they write 0.03 of the target's spread. Where it does not
    subtract `b_dec`, its biases put the centre of what it reads at 0. Massive tokens get no feature there, nor where
    features may be negative or have no bias.

    Args:
        sae: A freshly initialised SAE.
        activations: (N, d_in), some thousands, the same on every process.
        center: `"geometric_median"` (robust to outliers) or `"mean"`.
        target: (N, d_out), what a transcoder is to write at these tokens.
        active: How many features a token are to be active at the start, where training steers their number; None
            leaves that to the architecture.

    Returns:
        The SAE itself.

    Raises:
        ValueError: If there are no activations or only zeros or not all are finite, or a transcoder comes without its
            target.
    """
    if not len(activations):
        raise ValueError("initialise() needs activations: some thousands of tokens, got none.")
    x = activations.to(sae.encoder.weight)
    target = None if target is None else target.to(x)
    if sae.config.scale_inputs:
        _fit_scale(sae.input_scale, sae.scaled, x, sae.config.input_widths)
    scaled = goal = sae.scaled(x)
    find_center = geometric_median if center == "geometric_median" else partial(torch.mean, dim=0)
    if sae.config.is_transcoder:
        if sae.config.scale_inputs:
            _fit_scale(sae.output_scale, partial(sae.scaled_target, x), target, sae.config.output_widths)
        goal = sae.scaled_target(x, target)
    sae.b_dec.copy_(torch.cat([find_center(part) for part in goal.split(sae.config.output_widths, dim=1)]))
    if sae.config.is_transcoder and not sae.config.subtract_b_dec:
        sae.shift_pre_activations(-sae.pre_activations_of_scaled(find_center(scaled)))
    massive = _leave_out_massive_tokens(sae, scaled)
    if sae.config.aligned:
        align(sae.encoder.weight, sae.W_dec)
    sae.start_from(scaled, active)
    if sae.config.aligned:
        _lower_biases(sae, scaled, active)
    else:
        gain = _gain(sae, scaled, goal)
        for name in (*sae._encoder_matrices, *sae._in_scaled_space):
            sae.get_tensor(name).mul_(gain)
    _stand_for_massive_tokens(sae, *massive)
    sae.start_from(scaled, active)
    return sae


def _leave_out_massive_tokens(sae: SparseAutoencoder, scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Takes directions of massive tokens from all rows, and the first features, which are to stand for them.

    Else the strongest features of a massive token are whichever lie a little along it. All learn to write it, none
    alone, and each is strongest there.

    Returns:
        (m, d_in) directions, and (m,) how far out on each an ordinary token is at most.
    """
    if sae.config.is_transcoder or sae.signed or not sae._encoder_matrices:
        return scaled.new_zeros(0, scaled.shape[1]), scaled.new_zeros(0)
    apart, ordinary = directions_apart(scaled)
    directions = apart[: sae.config.n_features // 2].to(scaled.dtype)
    if not len(directions):
        return directions, scaled.new_zeros(0)
    lengths = sae.W_dec.norm(dim=1, keepdim=True)
    for matrix in (sae.encoder.weight, sae.W_dec):
        matrix -= (matrix @ directions.T) @ directions
        matrix[: len(directions)] = 0
    sae.W_dec.mul_(lengths / sae.W_dec.norm(dim=1, keepdim=True).clamp(min=torch.finfo(scaled.dtype).tiny))
    return directions, (sae.encoder_input(scaled[ordinary], sae.b_dec) @ directions.T).amax(0)


def _stand_for_massive_tokens(sae: SparseAutoencoder, directions: Tensor, levels: Tensor) -> None:
    """Lets the first features read and write a direction each, on tokens that are farther out than these levels."""
    if not len(directions):
        return
    first, shift = slice(0, len(directions)), torch.zeros_like(sae.encoder.bias)
    sae.encoder.weight[first] = sae.W_dec[first] = directions
    shift[first] = -levels - sae.encoder.bias[first]
    sae.shift_pre_activations(shift)


def _lower_biases(sae: SparseAutoencoder, scaled: Tensor, active: int | None) -> None:
    """Lowers all pre-activations by the least amount at which reconstructions are no longer too large."""
    some = scaled[:: max(1, len(scaled) // _ALIGNING_TOKENS)]
    first = sae.encoder.bias.clone()

    def gain_of(lowered_by: Tensor) -> Tensor:
        sae.encoder.bias.copy_(first)
        sae.shift_pre_activations(-lowered_by.expand_as(first))
        sae.start_from(some, active)
        return _gain(sae, some, some)

    low = torch.zeros((), dtype=some.dtype, device=some.device)
    high = sae.pre_activations_of_scaled(some).amax().clamp(min=0)
    if gain_of(low) >= 1:
        return
    for _ in range(_ALIGNING_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if gain_of(middle) >= 1 else (middle, high)
    gain_of(high)


def _fit_scale(scale: Tensor, scaled: Callable[[Any], Tensor], x: Tensor | None, widths: list[int]) -> None:
    """Sets a scale, or one for each of the parts of so many dimensions, so that a part's mean norm becomes √width."""
    scale.fill_(1.0)
    mean_norms = torch.stack([part.norm(dim=1).mean() for part in scaled(x).split(widths, dim=1)]).float()
    if not ((mean_norms > 0) & mean_norms.isfinite()).all():
        raise ValueError(
            "initialise() needs finite activations, not all of them 0: their mean norm is "
            f"{', '.join(f'{norm:g}' for norm in mean_norms.tolist())}."
        )
    scale.copy_((mean_norms.new_tensor(widths).sqrt() / mean_norms).view_as(scale))


def _gain(sae: SparseAutoencoder, scaled: Tensor, goal: Tensor) -> Tensor:
    """The factor on the features that brings the reconstruction closest to the goal; a transcoder's near 0."""
    some = slice(None, None, max(1, len(scaled) // _GAIN_TOKENS))
    scaled, goal = scaled[some], goal[some]
    pattern, pre = sae._encode(scaled, sae.training_selection(progress=0.0), path="auto")
    written = sae.written(pattern, sae.activation(pattern, pre)).float()
    wanted = (goal - sae.b_dec).float()
    if sae.config.is_transcoder:
        gain = _TRANSCODER_WRITES * wanted.norm() / written.norm()
    else:
        gain = (written * wanted).sum() / written.square().sum()
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
        # Not by a product, which is inexact near the median; and no second copy of the points.
        distance = torch.cdist(points, median[None], compute_mode="donot_use_mm_for_euclid_dist")[:, 0].clamp(
            min=1e-12
        )
        weight = 1 / distance
        moved = (weight @ points) / weight.sum()
        step = (moved - median).norm()
        median = moved
        if step < tolerance * distance.mean():
            break
    return median
