"""`Draft`: an SAE in our own terms before it is one, as a reader of a foreign format hands it over."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfsae.architectures import architectures, config_class_of
from hfsae.configuration import SAEConfig
from hfsae.loading import refuse_mismatch
from hfsae.modeling import SAE


@dataclass
class Draft:
    """What a foreign file says, in our terms.

    Args:
        architecture: Registered name of an architecture, such as `"topk"`.
        tensors: Our stored tensors by name. Scales that are not given are 1, biases 0.
        fields: Config fields; sizes are read off the tensors.
        facts: What else the source says of itself, for `config.training`: `dataset`, `reported_l0`, ...
    """

    architecture: str
    tensors: dict[str, Tensor]
    fields: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)

    def complete(self, facts: dict[str, Any], input_scale: float | None) -> None:
        """Adds what is known of the release and the files do not say."""
        if self.fields.get("input_transform") == "none":
            del self.fields["input_transform"]
        self.fields |= {key: value for key, value in facts.items() if self.fields.get(key) is None}
        if input_scale is not None:
            self.tensors.setdefault("input_scale", torch.tensor(input_scale))

    def config(self, **given: Any) -> SAEConfig:
        """The config; fields that the caller gives win over what the source says.

        Raises:
            ValueError: If there is no such field.
            huggingface_hub.errors.StrictDataclassError: If a value cannot be.
        """
        n_features, d_in = self.tensors["encoder.weight"].shape
        sizes = {"d_in": d_in, "n_features": n_features, "d_out": self.tensors["W_dec"].shape[-1]}
        facts = {key: value for key, value in self.facts.items() if value is not None}
        policy = {"exclude_special_tokens": False, "exclude_positions": [], "scale_inputs": False}
        fields = {**policy, **sizes, "training": facts or None, **self.fields, **given}
        return config_class_of(self.architecture)(**fields)

    def build(self, config: SAEConfig, source: str, dtype: torch.dtype | None = None) -> SAE:
        """The SAE, in evaluation mode.

        Args:
            config: Its config.
            source: What errors call it.
            dtype: Of the weights; None keeps that of the source's decoder.

        Raises:
            ValueError: If tensors are missing, unexpected or of the wrong size, naming them.
        """
        with torch.device("meta"):
            sae = architectures()[self.architecture](config)
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
        dtype = dtype or tensors["W_dec"].dtype
        exact = sae._float32_tensors
        state = {
            name: tensor.detach().to(torch.float32 if name in exact else dtype).contiguous()
            for name, tensor in tensors.items()
        }
        sae.load_state_dict(state, assign=True)
        return sae.eval()


def _defaults(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a source may leave out: scales of 1 and biases of 0."""
    scales = {name: torch.ones(()) for name in ("input_scale", "output_scale") if name in expected}
    return scales | {name: torch.zeros(expected[name].shape) for name in ("encoder.bias", "b_dec")}
