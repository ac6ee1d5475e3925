"""Matching pursuit: features one after the other, each the row closest to what is still missing (arXiv:2506.03093).

`r₁ = s·x − b_dec`; step t picks the row with the largest `⟨r_t, W_dec[i]⟩`, adds it to feature i where it is above 0,
and goes on with `r_{t+1} = r_t − ⟨r_t, W_dec[i]⟩ W_dec[i]`. The same rows read and write, so there is no encoder. k
steps cost k encoder products.
"""

from typing import Any, Literal, NamedTuple, Self, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from hfsae.autoencoder.registry import register
from hfsae.configuration import SAEConfig
from hfsae.functional import Pattern, Selection
from hfsae.functional.encode import Path
from hfsae.functional.pursuit import Pursuit, pursue
from hfsae.modeling import SAE


@strict
class MatchingPursuitSAEConfig(SAEConfig):
    """Config of a `MatchingPursuitSAE`; see `SAEConfig` for the shared fields.

    Args:
        k: Steps, and so active features per token, at most.
        residual_threshold: A token ends where the norm of what is missing falls below this, in scaled space; 0: never.
        stop_on_duplicate: Whether a token also ends with a step that picks a feature it has already.

    Raises:
        ValueError: If k is not positive or the threshold is negative. Likewise for a transcoder, for `skip`, without
            `subtract_b_dec` and with `rescale_by_decoder_norm`: the same rows read and write.

    Example:
        >>> from hfsae import MatchingPursuitSAEConfig
        >>> MatchingPursuitSAEConfig(d_in=64, n_features=512, k=16).k
        16
    """

    model_type = "hfsae_matching_pursuit"

    k: int = 32
    residual_threshold: float | int = 0.0
    stop_on_duplicate: bool = True

    def validate_steps(self):
        if self.k < 1:
            raise ValueError(f"k must be a positive number of steps, got {self.k}.")
        if not self.residual_threshold >= 0:
            raise ValueError(f"residual_threshold must be 0 or more, got {self.residual_threshold}.")

    def validate_tied(self):
        if self.is_transcoder or self.skip or not self.subtract_b_dec or self.rescale_by_decoder_norm or self.aligned:
            raise ValueError(
                "matching pursuit takes off what it writes from what it reads, so it needs subtract_b_dec, and takes "
                "no target_hook_point, no skip, no rescale_by_decoder_norm and no aligned."
            )


class _TiedEncoder(NamedTuple):
    """What an encoder of decoder rows has, as a linear layer has it."""

    weight: Tensor
    bias: Tensor


@register
class MatchingPursuitSAE(SAE):
    """Features found by k steps of matching pursuit over the decoder rows. Loss: squared error, plus auxk.

    Stored tensors: `W_dec` (n_features, d_in), `b_dec` (d_in,), `input_scale` (). `encoder.weight` is `W_dec`.
    """

    config_class = MatchingPursuitSAEConfig
    config: MatchingPursuitSAEConfig
    default_revival = "auxk"
    _in_scaled_space = ()
    _encoder_matrices = ()

    def _declare_matrices(self, config: Any) -> None:
        self.W_dec = nn.Parameter(torch.empty(config.n_features, config.d_in))

    def _init_matrices(self) -> None:
        init.normal_(self.W_dec)
        init.copy_(self.W_dec, nn.functional.normalize(self.W_dec.detach(), dim=1))

    @property
    def encoder(self) -> nn.Linear:  # type: ignore[override]
        """Decoder rows, which read too, and biases of 0."""
        return cast(nn.Linear, _TiedEncoder(self.W_dec, torch.zeros_like(self.W_dec[:, 0])))

    @property
    def encoder_passes(self) -> int:
        return self.config.k

    def selection(self) -> Selection:
        config = self.config
        return Pursuit(config.k, config.residual_threshold, config.stop_on_duplicate)  # type: ignore[return-value]

    def _encode(self, x: Tensor, selection: Selection, path: Path) -> tuple[Pattern, Tensor]:
        return pursue(self.encoder_input(x), self.W_dec, cast(Pursuit, selection), path)

    def activation(self, pattern: Pattern, pre: Tensor) -> Tensor:
        return pattern.keep(pre)

    @torch.no_grad()
    def fold_input_scale(self, keep: Literal["features", "unit_rows"] = "features") -> Self:
        """As of any SAE, with `keep="unit_rows"` alone: rows of another length would find other features."""
        if keep != "unit_rows":
            raise ValueError(
                f"the rows of a matching pursuit both read and write, and cannot take up a scale: keep must be "
                f"'unit_rows', got {keep!r}."
            )
        self.config.residual_threshold /= float(self.input_scale)
        return super().fold_input_scale(keep)
