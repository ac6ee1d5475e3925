"""`ConvertedSAE`: an SAE in our own terms before it is one, as a reader of a foreign format hands it over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.registry import class_of, config_class_of
from hfsae.autoencoder.strict import refuse_mismatch, refuse_unusable
from hfsae.configuration import SAEConfig


@dataclass
class ConvertedSAE:
    """What a foreign file says, in our terms.

    Args:
        architecture: Registered name of an architecture, such as `"topk"`.
        tensors: Our stored tensors by name. Scales that are not given are 1, biases 0.
        fields: Config fields; sizes are read off the tensors.
        facts: What else the source says of itself, for `config.training`: `dataset`, `reported_l0`, ...
        sizes: What the source's config says of `d_in`, `d_out` and `n_features`; None where it says nothing.
        dtype: What the source's config says of the weights, such as `"torch.bfloat16"`; None keeps the decoder's.
        transcodes: Whether the source says that it writes elsewhere than it reads.
    """

    architecture: str
    tensors: dict[str, Tensor]
    fields: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int | None] = field(default_factory=dict)
    dtype: str | None = None
    transcodes: bool = False

    def complete(self, facts: dict[str, Any], input_scale: float | None) -> None:
        """Adds what is known of the release and the files do not say."""
        if self.fields.get("input_transform") == "none":
            del self.fields["input_transform"]
        self.fields |= {key: value for key, value in facts.items() if self.fields.get(key) is None}
        if input_scale is not None:
            self.tensors.setdefault("input_scale", torch.tensor(input_scale, dtype=torch.float32))

    def config(self, source: str, given: Mapping[str, Any]) -> SAEConfig:
        """The config.

        Args:
            source: What errors call the SAE.
            given: Fields that the caller sets; they win over what the source says.

        Raises:
            ValueError: If there is no such field, sizes contradict the source's config, or a transcoder's target is
                not known. Likewise if the source has a value that cannot be.
            huggingface_hub.errors.StrictDataclassError: If a given value cannot be.
        """
        sizes = self._sizes(source)
        facts = {key: value for key, value in self.facts.items() if value is not None}
        policy = {"exclude_special_tokens": False, "exclude_positions": [], "scale_inputs": False}
        fields = {**policy, **sizes, "training": facts or None, **self.fields, **given}
        if self.transcodes and fields.get("target_hook_point") is None:
            raise ValueError(
                f"{source} is a transcoder and does not say where it writes: pass target_hook_point=..., "
                "such as 'mlp_out.8'."
            )
        try:
            return config_class_of(self.architecture)(**fields)
        except StrictDataclassError as error:
            if given:
                raise
            raise ValueError(f"the config of {source} cannot be: {' '.join(str(error).split())}") from error

    def _sizes(self, source: str) -> dict[str, int]:
        """Sizes as the tensors have them."""
        if "W_dec" not in self.tensors:
            return self._sizes_of_layers()
        decoder = self.tensors["W_dec"]
        encoder = self.tensors.get("encoder.weight", decoder)  # tied ones have none
        if encoder.ndim != 2 or decoder.ndim != 2:
            raise ValueError(
                f"the weights of {source} have an encoder of shape {tuple(encoder.shape)} and a decoder of shape "
                f"{tuple(decoder.shape)}, expected matrices."
            )
        sizes = {"d_in": encoder.shape[1], "n_features": encoder.shape[0], "d_out": decoder.shape[1]}
        for name, said in self.sizes.items():
            if said is not None and said != sizes[name]:
                raise ValueError(f"the config of {source} says {name} = {said}, its weights say {sizes[name]}.")
        return sizes

    def _sizes_of_layers(self) -> dict[str, int]:
        """Those of a cross-layer transcoder: of all layers together."""
        n_features, width = self.tensors["encoder.weight"].shape
        layers = len(self.fields["source_names"])
        return {"d_in": layers * width, "n_features": n_features, "d_out": len(self.tensors["b_dec"])}

    def build(self, config: SAEConfig, source: str, dtype: torch.dtype | None = None) -> SparseAutoencoder:
        """The SAE, in evaluation mode.

        Args:
            config: Its config.
            source: What errors call it.
            dtype: Of the weights; None takes what the source's config says, or keeps that of the source's decoder.

        Raises:
            ValueError: If tensors are missing, unexpected, of the wrong size or not finite, naming them.
        """
        with torch.device("meta"):
            sae = class_of(self.architecture)(config)
        expected = sae.state_dict()
        tensors = {**_defaults(expected), **self.tensors}
        refuse_mismatch(
            source,
            {
                "missing_keys": expected.keys() - tensors.keys(),
                "unexpected_keys": tensors.keys() - expected.keys(),
                "mismatched_keys": [
                    (name, tensor.shape, expected[name].shape)
                    for name, tensor in tensors.items()
                    if name in expected and tensor.shape != expected[name].shape
                ],
                "error_msgs": [],
            },
        )
        decoder = tensors["W_dec" if "W_dec" in tensors else "W_dec.0"]
        dtype = dtype or _dtype(self.dtype, source) or decoder.dtype
        exact = sae._float32_tensors
        state = {
            name: tensor.detach().to(torch.float32 if name in exact else dtype).contiguous()
            for name, tensor in tensors.items()
        }
        sae.load_state_dict(state, assign=True)
        refuse_unusable(source, sae)
        return sae.eval()


def _dtype(name: str | None, source: str) -> torch.dtype | None:
    """The dtype that a config calls `"float32"` or `"torch.float32"`."""
    if name is None:
        return None
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"the config of {source} has dtype = {name!r}, expected one such as 'float32'.")
    return dtype


def _defaults(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a source may leave out: scales of 1 and biases of 0."""
    scales = {
        name: torch.ones(expected[name].shape, dtype=torch.float32)
        for name in ("input_scale", "output_scale")
        if name in expected
    }
    return scales | {
        name: torch.zeros(expected[name].shape, dtype=torch.float32)
        for name in ("encoder.bias", "b_dec")
        if name in expected
    }
