"""Gated: one product decides which features are active and, rescaled, how much (Rajamanoharan et al. 2024a,
arXiv:2404.16014)."""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from hfsae.architectures.steered_biases import SteeredBiases
from hfsae.autoencoder.objective import TrainingStep, squared_error
from hfsae.autoencoder.registry import register
from hfsae.autoencoder.strategies import shardable
from hfsae.configuration import SAEConfig
from hfsae.functional import Above, Pattern, Selection, gated_magnitude


@strict
class GatedSAEConfig(SAEConfig):
    """Config of a `GatedSAE`; see `SAEConfig` for the shared fields, of which it needs no more.

    Raises:
        ValueError: If it is to be aligned.

    Example:
        >>> from hfsae import GatedSAEConfig
        >>> GatedSAEConfig(d_in=64, expansion_factor=8).n_features
        512
    """

    model_type = "hfsae_gated"

    def validate_alignment(self):
        if self.aligned:
            raise ValueError(
                "aligned=True fixes how strong a feature is by its encoder row, which in gated has a scale of its own "
                "for that. Leave it out."
            )


@register
@shardable
class GatedSAE(SteeredBiases):
    """`z = 1[π + b_gate > 0] · ReLU(exp(r) π + b_mag)` with π = W_e x̃; `encoder.bias` is b_gate.

    Loss: squared error + λ · mean Σ ReLU(π + b_gate) ‖W_dec[i]‖ + the squared error of the gate's own reconstruction
    through a frozen decoder. The last term teaches the gate what to detect without shrinking magnitudes.
    """

    config_class = GatedSAEConfig
    config: GatedSAEConfig
    # In short runs `resample` left more features silent, which cost variance and held L0 above its target.
    default_revival = "repoint"
    default_sparsity_coefficient = 1.5
    _in_scaled_space = ("encoder.bias", "magnitude_bias")

    def _declare(self, config: Any) -> None:
        self.magnitude_bias = nn.Parameter(torch.empty(config.n_features))
        self.magnitude_log_scale = nn.Parameter(torch.empty(config.n_features))

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.magnitude_bias)
            init.zeros_(self.magnitude_log_scale)

    def shift_pre_activations(self, shift: Tensor) -> None:
        super().shift_pre_activations(shift)
        self.magnitude_bias.add_(shift * self.magnitude_log_scale.exp())

    def selection(self) -> Selection:
        return Above(0.0)

    def activation(self, pattern: Pattern, pre: Tensor) -> Tensor:
        parameters = self.encoder_bias, self.magnitude_log_scale.exp(), self.magnitude_bias
        return gated_magnitude(pre, *(pattern.gather(parameter) for parameter in parameters))

    def objective(self, step: TrainingStep) -> dict[str, Tensor]:
        gate = torch.relu(step.pre)
        penalty = step.mean_weighted(gate, self.decoder_rows.norm(dim=1))
        written = step.pattern.decode(gate, self.decoder_rows.detach())
        return {
            "mse": step.mse(),
            "l1": step.state.sparsity_coefficient * penalty,
            "gate": squared_error(step.reconstruct(written, self.offset(step.x).detach()), step.target),
        }
