"""`SAEBenchView`: an SAE with the interface that SAEBench evaluates (Karvonen et al. 2025, arXiv:2503.09532)."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hfsae.architectures import architecture_name
from hfsae.interop.places import layer_of, transformer_lens
from hfsae.modeling import SAE


@dataclass
class SAEBenchConfig:
    """What SAEBench asks of an SAE's config; names and units are its own.

    Args:
        model_name: The language model as TransformerLens calls it.
        d_in: Size of the activations.
        d_sae: Number of features.
        hook_name: TransformerLens name of the place.
        hook_layer: Its layer.
        context_size: Tokens per block of text in training.
        prepend_bos: Whether blocks started with BOS.
        dtype: `"float32"`, `"bfloat16"`, ...
        architecture: The architecture's name here.
    """

    model_name: str
    d_in: int
    d_sae: int
    hook_name: str
    hook_layer: int
    context_size: int | None
    prepend_bos: bool | None
    dtype: str
    architecture: str

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


class SAEBenchView(nn.Module):
    """An SAE that takes and gives tensors, with decoder rows of unit norm and features in their units.

    Args:
        sae: The SAE; the view computes with it and keeps no weights of its own.

    Raises:
        ValueError: If decoding needs more than features (a transcoder, a skip connection, or an input transform that
            the activations undo), which the interface has no room for.

    Example:
        >>> view = sae.to_saebench()  # doctest: +SKIP
        >>> view.decode(view.encode(x)).shape, view.W_dec.norm(dim=1)  # doctest: +SKIP
        (torch.Size([4, 768]), tensor([1., 1., ...]))
    """

    def __init__(self, sae: SAE):
        super().__init__()
        config = sae.config
        if config.is_transcoder or config.skip or config.input_transform in ("layer_norm", "constant_norm"):
            raise ValueError(
                "SAEBench decodes features alone; this SAE's reconstruction needs the activations too "
                f"(target_hook_point={config.target_hook_point}, skip={config.skip}, "
                f"input_transform={config.input_transform!r})."
            )
        self.sae = sae.eval()
        lens_name = transformer_lens(config.hook_point, config.base_model) or config.hook_point or ""
        self.cfg = SAEBenchConfig(
            model_name=(config.base_model or "").split("/")[-1],
            d_in=config.d_in,
            d_sae=config.n_features,
            hook_name=lens_name,
            hook_layer=layer_of(lens_name) or 0,
            context_size=config.context_length,
            prepend_bos=config.prepend_bos,
            dtype=str(sae.dtype).removeprefix("torch."),
            architecture=architecture_name(config),
        )

    @property
    def _norm(self) -> Tensor:
        """(n_features,) length of what one unit of each feature writes; 1 for rows of zeros."""
        norm = self.sae.feature_directions.norm(dim=1)
        return torch.where(norm > 0, norm, 1.0)

    @property
    def W_enc(self) -> Tensor:
        """(d_in, n_features), on raw activations."""
        return (self.sae.encoder_rows * (self.sae.input_scale * self._norm)[:, None]).T.to(self.dtype)

    @property
    def W_dec(self) -> Tensor:
        """(n_features, d_in), rows of unit norm."""
        return self.sae.feature_directions / self._norm[:, None]

    @property
    def b_enc(self) -> Tensor:
        """(n_features,)."""
        return self.sae.encoder_bias * self._norm

    @property
    def b_dec(self) -> Tensor:
        """(d_in,), in the language model's own units."""
        return (self.sae.b_dec / self.sae.input_scale).to(self.dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.sae.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.sae.dtype

    def encode(self, x: Tensor) -> Tensor:
        """Dense features (..., n_features) of activations (..., d_in)."""
        return self.sae.encode(x) * self._norm

    def decode(self, features: Tensor) -> Tensor:
        """Activations (..., d_in) of dense features."""
        return self.sae.decode(features / self._norm)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions of activations."""
        return self.decode(self.encode(x))
