"""What loading holds an SAE against: the class its config names, every tensor of it, numbers that can be."""

import os
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from hfsae.configuration import SAEConfig
from hfsae.finite_numbers import all_finite


def refuse_other_models(config: Any, source: str | os.PathLike) -> None:
    """Raises for the config of a model that is no SAE, naming its kind."""
    if not isinstance(config, SAEConfig):
        kind = getattr(config, "model_type", None) or type(config).__name__
        raise ValueError(f"{source} holds a {kind!r} model, not a sparse autoencoder.")


def class_for(config: SAEConfig, wanted: type[PreTrainedModel], source: str | os.PathLike) -> type[PreTrainedModel]:
    """The class of the architecture that a config belongs to.

    Args:
        config: The config.
        wanted: The class that was asked for: this one, or a base of it.
        source: What error messages call the SAE.

    Raises:
        ValueError: If the config is not an architecture's, or the class is not a kind of `wanted`.
    """
    refuse_other_models(config, source)
    try:
        found: Any = AutoModel._model_mapping[type(config)]  # type: ignore[index]
    except KeyError:
        raise ValueError(f"{source} names no architecture, only the abstract {type(config).__name__}.") from None
    if not issubclass(found, wanted):
        raise ValueError(f"{source} is of a {found.__name__}: use {found.__name__} or SAE, not {wanted.__name__}.")
    return found


def refuse_mismatch(source: str | os.PathLike, info: dict[str, Any]) -> None:
    """Raises for tensors that a config does not have, or a file lacks, or that are of another size, naming them.

    Args:
        source: What the error calls the SAE.
        info: `missing_keys`, `unexpected_keys`, `mismatched_keys` (name, size there, size expected) and `error_msgs`,
            as transformers reports them.
    """
    found = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"]),
        "of the wrong size": sorted(
            f"{name} (stored {tuple(stored)}, expected {tuple(expected)})"
            for name, stored, expected in info["mismatched_keys"]
        ),
        "unreadable": info["error_msgs"],
    }
    if any(found.values()):
        details = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in found.items() if names)
        raise ValueError(f"The weights of {source} do not match its config. Tensors {details}.")


def refuse_other_tensors(sae: PreTrainedModel, state: dict[str, Any]) -> None:
    """Raises where what is to be saved are not the tensors of the class, so that nobody could load it.

    Args:
        sae: The SAE.
        state: Its tensors by name, or those to be saved in their place.

    Raises:
        ValueError: Names them.
    """
    with torch.device("meta"):
        expected = type(sae)(sae.config).state_dict().keys()
    info: dict[str, Any] = {"missing_keys": expected - state.keys(), "unexpected_keys": state.keys() - expected}
    try:
        refuse_mismatch("this SAE", {**info, "mismatched_keys": [], "error_msgs": []})
    except ValueError as error:
        raise ValueError(
            f"{error} Take off what was put around its weights, such as prunings, parametrizations and adapters."
        ) from None


def refuse_offloaded(source: str | os.PathLike, sae: PreTrainedModel) -> None:
    """Raises for an SAE of which a part lies on a disk or on several devices: its methods read it where it lies.

    Raises:
        ValueError: If it does.
    """
    places = {str(place) for place in (getattr(sae, "hf_device_map", None) or {}).values()}
    if "disk" in places or len(places) > 1:
        raise ValueError(
            f"device_map puts {source} on {', '.join(sorted(places))}, and an SAE lies on one device as a whole. Give "
            "one that has room for it, such as device_map='cpu'."
        )


def refuse_unusable(source: str | os.PathLike, sae: PreTrainedModel) -> None:
    """Raises for weights and thresholds that are not finite, and scales that are not positive, naming them.

    Args:
        source: What the error calls the SAE.
        sae: The SAE; tensors that lie nowhere yet, and quantised ones, pass.
    """
    for name, tensor in [*sae.named_parameters(), *sae.named_buffers()]:
        if tensor.is_meta or not tensor.is_floating_point():
            continue
        if not all_finite(tensor):
            bad = int(torch.count_nonzero(~tensor.isfinite()))
            raise ValueError(
                f"{name} of {source} holds NaN or infinity, in {bad:,} of {tensor.numel():,} places: these weights "
                "are broken. Take them from a copy or an earlier checkpoint."
            )
        if name in ("input_scale", "output_scale") and not (tensor > 0).all():
            raise ValueError(f"{name} of {source} is {tensor.min().item()}, expected a number above 0.")
