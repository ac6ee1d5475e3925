"""`SAEBenchView`: an SAE with the interface that SAEBench evaluates (Karvonen et al. 2025, arXiv:2503.09532)."""

from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.registry import architecture_name, class_of
from hfsae.autoencoder.signed import refuse_signed
from hfsae.interop.foreign_names import layer_of, transformer_lens_names
from hfsae.interop.positions import kept_slice


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

    Attributes:
        metadata: What SAELens' store of activations, which SAEBench runs, asks of the text; an absent name is None.
        normalize_activations: `"none"`: the view takes activations as they are.
        hook_head_index: None: all heads.
        model_from_pretrained_kwargs: Nothing: the language model is loaded as it is.
        dataset_trust_remote_code: False: no code of a data set is run.
    """

    normalize_activations: ClassVar[str] = "none"
    hook_head_index: ClassVar[int | None] = None
    model_from_pretrained_kwargs: ClassVar[dict[str, Any]] = {}
    dataset_trust_remote_code: ClassVar[bool] = False

    model_name: str
    d_in: int
    d_sae: int
    hook_name: str
    hook_layer: int
    context_size: int | None
    prepend_bos: bool | None
    dtype: str
    architecture: str

    def __post_init__(self):
        self.metadata = _Metadata(**asdict(self))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return asdict(self)


class _Metadata(SimpleNamespace):
    """As SAELens' own: a name that is not there is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class SAEBenchView(nn.Module):
    """An SAE that takes and gives tensors, with decoder rows of unit norm and features in their units.

    Args:
        sae: The SAE; the view computes with it and keeps no weights of its own.

        hook_name: TransformerLens' name of the SAE's place; None asks the config, see `transformer_lens_names`.

    Raises:
        ValueError: If decoding needs more than features, which the interface has no room for. That is so for a
            transcoder, a skip connection, and an input transform that the activations undo. Likewise if the config
            does not say what SAEBench asks: the place, the language model, and whether blocks started with BOS.

    Example:
        >>> view = SAEBenchView(sae)  # doctest: +SKIP
        >>> view.decode(view.encode(x)).shape, view.W_dec.norm(dim=1)  # doctest: +SKIP
        (torch.Size([4, 768]), tensor([1., 1., ...]))
    """

    # SAEBench flattens the heads of `hook_z` itself.
    hook_z_reshaping_mode = False

    def __init__(self, sae: SparseAutoencoder, *, hook_name: str | None = None):
        super().__init__()
        config = sae.config
        if config.is_transcoder or config.skip or config.input_transform in ("layer_norm", "constant_norm"):
            raise ValueError(
                "SAEBench decodes features alone; this SAE's reconstruction needs the activations too "
                f"(target_hook_point={config.target_hook_point}, skip={config.skip}, "
                f"input_transform={config.input_transform!r})."
            )
        refuse_signed(sae, "SAEBench")
        lens_name, _ = transformer_lens_names(config, hook_name)
        if lens_name is None:
            raise ValueError("SAEBench asks where the SAE reads: set config.hook_point, or pass hook_name=....")
        for name in ("base_model", "prepend_bos"):
            if getattr(config, name) is None:
                raise ValueError(f"SAEBench asks for {name}, which this SAE's config does not say: set config.{name}.")
        self.sae = sae.eval()
        self.cfg = SAEBenchConfig(
            model_name=str(config.base_model).rstrip("/").split("/")[-1],
            d_in=config.d_in,
            d_sae=config.n_features,
            hook_name=lens_name,
            hook_layer=layer_of(lens_name) or 0,
            context_size=config.context_length,
            prepend_bos=config.prepend_bos,
            dtype=_name(sae.dtype),
            architecture=architecture_name(config),
        )
        self.cfg.metadata.exclude_special_tokens = config.exclude_special_tokens
        self.cfg.metadata.seqpos_slice = kept_slice(config.exclude_positions, config.context_length)

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
    def b_mag(self) -> Tensor:
        """(n_features,) of the magnitudes of a gated SAE, which SAEBench shows in place of `b_enc`."""
        if not isinstance(self.sae, class_of("gated")):
            raise AttributeError("b_mag")
        return self.sae.get_tensor("magnitude_bias") * self._norm

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

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `nn.Module.to`; the config's `dtype` follows."""
        moved = super().to(*args, **kwargs)
        self.cfg.dtype = _name(self.dtype)
        return moved

    def turn_off_forward_pass_hook_z_reshaping(self) -> None:
        """Nothing to turn off: heads always come flattened."""

    def encode(self, x: Tensor) -> Tensor:
        """Dense features (..., n_features) of activations (..., d_in)."""
        return self.sae.encode(x) * self._norm

    def decode(self, features: Tensor) -> Tensor:
        """Activations (..., d_in) of dense features."""
        return self.sae.decode(features / self._norm)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions of activations."""
        return self.decode(self.encode(x))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
