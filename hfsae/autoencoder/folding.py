"""Writing scales and norms of an SAE into its weights, exactly: its features and reconstructions stay the same."""

from typing import Literal

import torch

from hfsae.autoencoder.model import SparseAutoencoder


@torch.no_grad()
def fold_input_scale(sae: SparseAutoencoder, keep: Literal["features", "unit_rows"] = "features") -> None:
    """Folds `input_scale` (and `output_scale`) into the weights, exactly; the scales become 1.

    A transcoder that subtracts `b_dec` does so at its input's scale and adds it at its output's. So the subtraction
    moves into the biases, and `config.subtract_b_dec` becomes False.

    Args:
        sae: The SAE, edited in place.
        keep: `"features"` leaves every feature value unchanged and rows of `W_dec` become 1/s as long;
            `"unit_rows"` leaves `W_e` and `W_dec` unchanged and feature values become z/s.

    Raises:
        ValueError: For another `keep`, or with `"unit_rows"` for a transcoder or crosscoder: its several scales cannot
            all move into the features.
    """
    if keep not in ("features", "unit_rows"):
        raise ValueError(f"keep must be 'features' or 'unit_rows', got {keep!r}.")
    if keep == "unit_rows" and (sae.config.is_transcoder or sae.input_scale.ndim):
        raise ValueError("keep='unit_rows' needs one scale for all of input and output; use keep='features'.")
    fold_decoder_norm(sae)
    if sae.config.is_transcoder:
        subtract_b_dec(sae, False)
    s_in, s_out = sae._scale_in.clone(), sae._scale_out.clone()
    if keep == "features":
        sae.encoder.weight.mul_(s_in)
        sae.W_dec.div_(s_out)
    else:
        for name in sae._in_scaled_space:
            sae.get_tensor(name).div_(s_in)
    sae.b_dec.div_(s_out)
    if sae.config.skip:
        sae.W_skip.mul_(s_in / s_out)
    for name in ("input_scale", "output_scale"):
        if (scale := getattr(sae, name, None)) is not None:
            scale.fill_(1.0)
    sae.config.scale_inputs = False


@torch.no_grad()
def subtract_b_dec(sae: SparseAutoencoder, subtract: bool) -> None:
    """Sets `config.subtract_b_dec`; its effect moves into or out of the biases, so that features stay the same."""
    if subtract != sae.config.subtract_b_dec:
        shift = sae.encoder_rows @ sae.b_dec
        sae.shift_pre_activations(shift if subtract else -shift)
        sae.config.subtract_b_dec = subtract


@torch.no_grad()
def fold_decoder_norm(sae: SparseAutoencoder) -> None:
    """Writes `rescale_by_decoder_norm` into the weights: rows of `W_dec` at unit norm, the encoder scaled up."""
    if not sae.config.rescale_by_decoder_norm:
        return
    norm = sae.W_dec.norm(dim=1)
    sae.encoder.weight.mul_(norm[:, None])
    sae.encoder.bias.mul_(norm)
    sae.W_dec.div_(norm[:, None])
    sae.config.rescale_by_decoder_norm = False
