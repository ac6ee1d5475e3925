"""`Parameters`: the tensors of a sparse autoencoder: declared, initialised, seen by the names people know, moved."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init

from hfsae.autoencoder.architecture import Architecture
from hfsae.autoencoder.strict import class_for
from hfsae.configuration import SAEConfig
from hfsae.functional import at_least_float32


def bare_linear(d_in: int, d_out: int) -> nn.Linear:
    """A linear map whose values are left to others, where tensors are made now: without memory in an empty model."""
    linear = nn.Linear(d_in, d_out, device="meta")
    linear.weight = nn.Parameter(torch.empty(d_out, d_in))
    linear.bias = nn.Parameter(torch.empty(d_out))
    return linear


class Parameters(Architecture, PreTrainedModel):
    """What an SAE stores.

    * `encoder.weight` (n_features, d_in), `encoder.bias` (n_features,)
    * `W_dec` (n_features, d_out), `b_dec` (d_out,)
    * `input_scale` (), or (sources,) of a crosscoder
    * `output_scale` () of transcoders
    * `W_skip` (d_out, d_in) where there is one

    Those of a cross-layer transcoder lie by layer (`hfsae.architectures.cross_layer`).
    """

    config_class: type[SAEConfig] = SAEConfig
    config: SAEConfig
    encoder: nn.Linear
    input_scale: Tensor
    output_scale: Tensor
    base_model_prefix = ""
    main_input_name = "activations"
    _no_split_modules = []
    _float32_tensors = ("input_scale", "output_scale")
    _keep_in_fp32_modules_strict = ["input_scale", "output_scale", "threshold"]

    def __init__(self, config: SAEConfig):
        if self.config_class is SAEConfig:
            raise TypeError("SAE is abstract: use SAE.from_pretrained, SAE.from_config or a class such as TopKSAE.")
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} needs a {self.config_class.__name__}, got a {type(config).__name__}: "
                "SAE.from_config picks the class that belongs to a config."
            )
        super().__init__(config)
        self._declare_matrices(config)
        self.b_dec = nn.Parameter(torch.empty(config.d_out))
        self.register_buffer("input_scale", torch.ones((), dtype=torch.float32))
        if config.is_transcoder:
            self.register_buffer("output_scale", torch.ones((), dtype=torch.float32))
        self._declare(config)
        self.post_init()

    def _declare_matrices(self, config: SAEConfig) -> None:
        """Declares the encoder, the decoder, and the skip connection where there is one."""
        self.encoder = bare_linear(config.d_in, config.n_features)
        self.W_dec = nn.Parameter(torch.empty(config.n_features, config.d_out))
        if config.skip:
            self.W_skip = nn.Parameter(torch.empty(config.d_out, config.d_in))

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses a PEFT adapter around the encoder: what is computed reads `encoder.weight`, which has no part of it.

        Raises:
            TypeError: If it is one.
        """
        if isinstance(value, nn.Module) and hasattr(value, "base_layer"):
            raise TypeError(
                f"{type(value).__name__} on the {name} of an SAE would do nothing: its weights are read as they are. "
                f"Train the SAE itself, and leave {name} out of the adapter's target_modules (exclude_modules)."
            )
        super().__setattr__(name, value)

    # -- initialisation ---------------------------------------------------------------------------------------------
    def _init_weights(self, module: nn.Module) -> None:
        """Biases and skip connections of 0, scales of 1. Only `init` calls, which leave loaded tensors alone."""
        if module is not self:
            return
        self._init_matrices()
        init.zeros_(self.encoder.bias)
        init.zeros_(self.b_dec)
        for name in ("input_scale", "output_scale"):
            if (scale := getattr(self, name, None)) is not None:
                init.ones_(scale)
        if self.config.skip:
            init.zeros_(self.W_skip)

    def _init_matrices(self) -> None:
        """Random unit decoder rows, encoder tied to them at the start."""
        init.normal_(self.W_dec)
        init.copy_(self.W_dec, torch.nn.functional.normalize(self.W_dec.detach(), dim=1))
        if self.config.d_out == self.config.d_in:
            init.copy_(self.encoder.weight, self.W_dec.detach())
        else:
            init.normal_(self.encoder.weight, std=self.config.d_in**-0.5)

    # -- names people know ------------------------------------------------------------------------------------------
    @property
    def W_enc(self) -> Tensor:
        """The encoder as (d_in, n_features), a view of `encoder.weight`."""
        return self.encoder.weight.T

    @property
    def b_enc(self) -> Tensor:
        """The encoder's bias, (n_features,)."""
        return self.encoder.bias

    @property
    def encoder_rows(self) -> Tensor:
        """What the features read in scaled space, (n_features, d_in): `encoder.weight`, perhaps by decoder norms."""
        if self.config.rescale_by_decoder_norm:
            return self.encoder.weight * self.W_dec.norm(dim=1, keepdim=True)
        return self.encoder.weight

    @property
    def encoder_bias(self) -> Tensor:
        """The bias that belongs to `encoder_rows`, (n_features,)."""
        if self.config.rescale_by_decoder_norm:
            return self.encoder.bias * self.W_dec.norm(dim=1)
        return self.encoder.bias

    @property
    def decoder_rows(self) -> Tensor:
        """What the features write in scaled space, (n_features, d_out): `W_dec`, or its rows at unit norm."""
        if self.config.rescale_by_decoder_norm:
            return torch.nn.functional.normalize(self.W_dec, dim=1)
        return self.W_dec

    @property
    def decoder_norms(self) -> Tensor:
        """How long what each feature writes in scaled space is, (n_features,)."""
        return self.decoder_rows.norm(dim=1)

    @property
    def decoder_weights(self) -> list[nn.Parameter]:
        """The parameters whose rows training keeps at unit norm, where it does."""
        return [self.W_dec]

    @property
    def encoder_blocks(self) -> list[tuple[int, Tensor]]:
        """Rows of the features, in their order: the first column that some of them read, and their rows from there."""
        return [(0, self.encoder.weight)]

    @property
    def decoder_blocks(self) -> list[tuple[int, Tensor]]:
        """The same of what they write: the first column that some of them write at, and their rows from there."""
        return [(0, self.W_dec)]

    @property
    def feature_directions(self) -> Tensor:
        """What one unit of each feature adds to the language model's own activations: (n_features, d_out).

        Bare `W_dec` is wrong by the output scale here.
        """
        rows = self.decoder_rows
        return (at_least_float32(rows) / self._scale_out).to(rows.dtype)

    @property
    def _scale_in(self) -> Tensor:
        """What activations are multiplied by: (), or (d_in,) where dimensions differ."""
        return self.input_scale

    @property
    def _scale_out(self) -> Tensor:
        """What reconstructions are divided by; of a transcoder it is a scale of its own."""
        return self.output_scale if self.config.is_transcoder else self._scale_in

    # -- tensors and precision ----------------------------------------------------------------------------------------
    def shift_pre_activations(self, shift: Tensor) -> None:
        """Adds to every feature's pre-activation, through the biases."""
        norm = self.W_dec.norm(dim=1) if self.config.rescale_by_decoder_norm else 1.0
        self.encoder.bias.add_(shift / norm)

    def get_tensor(self, name: str) -> Tensor:
        """A parameter or buffer by its stored name."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return tensors[name]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        """Moves everything; scales and thresholds stay float32: rounded to bfloat16 they change the features."""
        kept = {id(t) for name in self._float32_tensors if (t := getattr(self, name, None)) is not None}

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) in kept and moved.dtype != torch.float32 and moved.is_floating_point():
                return tensor.to(device=moved.device, dtype=torch.float32)
            return moved

        return super()._apply(move, recurse)

    # -- loading and saving -----------------------------------------------------------------------------------------
    @classmethod
    def from_config(cls, config: SAEConfig, **kwargs: Any) -> Self:
        """A freshly initialised SAE of the class that the config names.

        Args:
            config: A config of an architecture.
            **kwargs: For `AutoModel.from_config`: `dtype`.

        Raises:
            ValueError: If the config belongs to another class than the one called.
        """
        class_for(config, cls, "the config")
        return AutoModel.from_config(config, **kwargs)
