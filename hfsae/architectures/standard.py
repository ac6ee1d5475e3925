"""Standard: ReLU with an L1 penalty (Bricken et al. 2023; decoder-norm weighting: Anthropic, April 2024 update)."""

from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import initialization as init

from hfsae.architectures.steered_biases import SteeredBiases
from hfsae.autoencoder.objective import TrainingStep
from hfsae.autoencoder.registry import register
from hfsae.autoencoder.strategies import shardable
from hfsae.configuration import SAEConfig
from hfsae.functional import Above, Pattern, Selection

# Where rows are free to grow they start short (Anthropic, April 2024 update).
_FREE_ROW_NORM = 0.1


@strict
class StandardSAEConfig(SAEConfig):
    """Config of a `StandardSAE`; see `SAEConfig` for the shared fields.

    Args:
        penalty: `"decoder_norm"` weights each feature's L1 by the norm of its decoder row, and leaves rows free.
            `"l1"` is the plain `λ‖f‖₁` with rows kept at unit norm.

    Example:
        >>> from hfsae import StandardSAEConfig
        >>> StandardSAEConfig(d_in=64, expansion_factor=8, penalty="l1").n_features
        512
    """

    model_type = "hfsae_standard"

    penalty: Literal["decoder_norm", "l1"] = "decoder_norm"


@register
@shardable
class StandardSAE(SteeredBiases):
    """`z = ReLU(h)`. Loss: squared error + λ · mean over tokens of Σ z_i ‖W_dec[i]‖."""

    config_class = StandardSAEConfig
    config: StandardSAEConfig
    default_sparsity_coefficient = 1.0

    @property
    def unit_decoder_rows(self) -> bool:
        return self.config.penalty == "l1"

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and not self.unit_decoder_rows:
            init.copy_(self.W_dec, self.W_dec.detach() * _FREE_ROW_NORM)

    def selection(self) -> Selection:
        return Above(0.0)

    def activation(self, pattern: Pattern, pre: Tensor) -> Tensor:
        # Nothing to keep apart: what is not active is 0 after the ReLU.
        return torch.relu(pre)

    @property
    def penalised_norms(self) -> Tensor:
        """What a feature's L1 is weighed by, (n_features,)."""
        return self.decoder_rows.norm(dim=1)

    def objective(self, step: TrainingStep) -> dict[str, Tensor]:
        if self.config.penalty == "decoder_norm":
            penalty = step.mean_weighted(step.values, self.penalised_norms)
        else:
            penalty = step.mean_per_token(step.values)
        return {"mse": step.mse(), "l1": step.state.sparsity_coefficient * penalty}


def l1_coefficient_from_mean_squared(l1: float, d_in: int, input_scale: float) -> float:
    """The λ of `penalty="l1"` that does what `l1` does beside a mean over d of the squared error of raw activations.

    Guides that write `L = mean_d (x − x̂)² + l1 · ‖f‖₁` on unscaled activations use values of 1e-4 … 1e-2. With
    activations scaled by s and the error summed over d, `d·s²·L = ‖s·x − s·x̂‖² + l1·d·s · ‖s·f‖₁`.

    Args:
        l1: Their coefficient.
        d_in: Size of the activations.
        input_scale: s, as stored in the SAE.

    Example:
        >>> from hfsae.architectures.standard import l1_coefficient_from_mean_squared
        >>> l1_coefficient_from_mean_squared(1e-3, d_in=768, input_scale=0.5)
        0.384
    """
    return l1 * d_in * float(torch.as_tensor(input_scale))
