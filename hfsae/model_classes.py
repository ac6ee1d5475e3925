"""Which class of transformers loads a language model, as its config tells."""

from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel


def model_class(config: PreTrainedConfig) -> Any:
    """The class whose `from_pretrained` loads a language model of this config.

    `AutoModelForCausalLM` where it can; for encoders and multimodal models the fitting auto class, or the class that
    the config names.

    Args:
        config: The language model's config.

    Raises:
        ValueError: If transformers has no class for it.
    """
    named = (config.architectures or [""])[0]
    if _is_masked_lm(config, named):
        return transformers.AutoModelForMaskedLM
    for auto in (
        transformers.AutoModelForCausalLM,
        transformers.AutoModelForImageTextToText,
        transformers.AutoModelForMultimodalLM,
    ):
        if type(config) in auto._model_mapping or auto.__name__ in (getattr(config, "auto_map", None) or {}):
            return auto
    model_class = getattr(transformers, named, None) if named else None
    if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel):
        return model_class
    raise ValueError(
        f"transformers has no language model for the config of type {config.model_type!r} "
        f"(architectures: {named or 'none named'}). Load the model yourself and pass the object."
    )


def _is_masked_lm(config: PreTrainedConfig, named: str) -> bool:
    """Whether a config is of an encoder; `AutoModelForCausalLM` may know it too, as a decoder that it is not."""
    if type(config) not in transformers.MODEL_FOR_MASKED_LM_MAPPING or getattr(config, "is_decoder", False):
        return False
    causal: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return causal is None or (named != causal.__name__ and not config.is_encoder_decoder)


def without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    """A language model without weights, on the meta device: enough to name its places and count its parameters."""
    kind = model_class(config)
    with torch.device("meta"):
        return kind._from_config(config) if issubclass(kind, PreTrainedModel) else kind.from_config(config)
