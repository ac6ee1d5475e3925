"""Strict loading of SAEs: the class the config names, every tensor accounted for, nothing unpickled."""

import os
from typing import Any

from transformers import AutoConfig, AutoModel, PreTrainedModel

from hfsae.configuration import SAEConfig

_HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_WEIGHT_KEYS = ("dtype", "torch_dtype", "quantization_config")


def load_sae(
    cls: type[PreTrainedModel],
    base: type[PreTrainedModel],
    source: str | os.PathLike,
    *args: Any,
    config: SAEConfig | None = None,
    output_loading_info: bool = False,
    **kwargs: Any,
):
    """`SAE.from_pretrained` for the class `cls` on which it was called; `base` is `SAE` itself."""
    if kwargs.get("use_safetensors") is False:
        raise ValueError("SAEs are read from safetensors only: pickled weights can run code when they are opened.")
    kwargs["use_safetensors"] = True
    if config is None:
        config, kwargs = _load_config(source, kwargs)
    target = _class_for(config, source)
    if not issubclass(target, cls):
        raise ValueError(f"{source} is a {target.__name__}: load it with {target.__name__} or SAE, not {cls.__name__}.")
    if args:
        raise TypeError("SAE.from_pretrained takes keyword arguments only, besides the name or path.")
    sae, info = super(base, target).from_pretrained(source, config=config, output_loading_info=True, **kwargs)
    _refuse_mismatch(source, info)
    return (sae, info) if output_loading_info else sae


def _load_config(source: str | os.PathLike, kwargs: dict[str, Any]) -> tuple[SAEConfig, dict[str, Any]]:
    """The config, and the arguments that are left for the weights."""
    hub = {key: kwargs[key] for key in _HUB_KEYS if key in kwargs}
    weights = {key: kwargs[key] for key in _WEIGHT_KEYS if key in kwargs}
    rest = {key: value for key, value in kwargs.items() if key not in hub and key not in weights}
    try:
        config, rest = AutoConfig.from_pretrained(source, return_unused_kwargs=True, **hub, **rest)
    except ValueError as error:
        if "hfsae_" in str(error):
            raise ValueError(
                f"{source} holds an SAE of an architecture this version of hfsae does not know. Upgrade hfsae."
            ) from error
        raise
    if not isinstance(config, SAEConfig):
        raise ValueError(f"{source} holds a {config.model_type!r} model, not a sparse autoencoder.")
    return config, {**hub, **weights, **rest}


def _class_for(config: SAEConfig, source: str | os.PathLike) -> type[PreTrainedModel]:
    try:
        return AutoModel._model_mapping[type(config)]  # type: ignore[index]
    except KeyError:
        raise ValueError(f"{source} names the abstract model_type {config.model_type!r}: no architecture.") from None


def _refuse_mismatch(source: str | os.PathLike, info: dict[str, Any]) -> None:
    found = {
        kind.replace("_", " "): sorted(str(entry) for entry in info[kind])
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        if info.get(kind)
    }
    if found:
        details = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in found.items())
        raise ValueError(f"The weights of {source} do not match its config. {details}.")
