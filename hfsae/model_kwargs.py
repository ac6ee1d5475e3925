"""What `from_pretrained` of a language model may be told, and which of it every later loading has to repeat."""

import json
from collections.abc import Mapping
from typing import Any

from hfsae.suggestions import did_you_mean

RECORDED = {
    "attn_implementation",
    "experts_implementation",
    "gguf_file",
    "quantization_config",
    "subfolder",
    "variant",
}
"""What changes activations, or decides which weights are read: an SAE's config records it."""

_OF_THIS_MACHINE = {
    "cache_dir",
    "code_revision",
    "local_files_only",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "trust_remote_code",
    "use_safetensors",
}
"""What each loading decides for itself: where files lie, and whose code and which pickles are trusted."""

_ELSEWHERE = {
    "dtype": "model_dtype",
    "torch_dtype": "model_dtype",
    "device_map": "model_device_map",
    "revision": "model_revision",
    "load_in_8bit": '"quantization_config": {"load_in_8bit": true}',
    "load_in_4bit": '"quantization_config": {"load_in_4bit": true}',
}
"""Names that belong in another argument."""


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as plain values; a `BitsAndBytesConfig` and its like become what they are in JSON.

    Args:
        given: Arguments of `from_pretrained` by name.

    Raises:
        ValueError: If one belongs elsewhere, is not known here, or is no plain value.
    """
    for name in given.keys() - RECORDED - _OF_THIS_MACHINE:
        if name in _ELSEWHERE:
            raise ValueError(f"model_kwargs: give {name} as {_ELSEWHERE[name]}.")
        known = sorted(RECORDED | _OF_THIS_MACHINE)
        if hint := did_you_mean(name, known):
            raise ValueError(f"model_kwargs: unknown argument {name!r}.{hint}")
        raise ValueError(
            f"model_kwargs: {name!r} is none of {', '.join(known)}. To change the "
            "model's config, save a model with that config and name its folder; a token belongs in `hf auth login`."
        )
    values = {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in given.items()}
    try:
        return json.loads(json.dumps(values))
    except TypeError as error:
        raise ValueError(f"model_kwargs: expected plain values, as JSON holds them: {error}.") from error


def recorded(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that an SAE's config records."""
    return {name: value for name, value in given.items() if name in RECORDED}


def trusted(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a config, which may be anybody's, that are safe to repeat.

    Raises:
        ValueError: If one is unknown here, or names code that would be fetched and run.
    """
    for name, value in stored.items():
        if name not in RECORDED:
            raise ValueError(f"the SAE's config asks for {name}={value!r} of its language model: not known here.")
        if name.endswith("_implementation") and ("/" in str(value) or ":" in str(value)):
            raise ValueError(
                f"the SAE's config asks for {name}={value!r}, which is code from the Hub. If you trust it, pass "
                f"{name}=... to load_base_model() yourself."
            )
        if name in ("gguf_file", "subfolder") and (str(value).startswith(("/", "\\")) or ".." in str(value)):
            raise ValueError(f"the SAE's config asks for {name}={value!r}, which lies outside of the model's folder.")
    return dict(stored)
