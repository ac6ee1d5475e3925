"""The language model of a run: loaded by name or taken as an object, with where it comes from."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.hooks import SideBySide
from hfsae.hooks.inner import inner_model, model_to_call
from hfsae.hooks.quantised import quantised_in_place
from hfsae.inputs.compared_models import compares, models_of, refuse_unequal_tokenizers
from hfsae.language_model import (
    Origin,
    find,
    is_quantised,
    load,
    origin_config,
    tokenizer_of,
    tokenizer_of_all,
)
from hfsae.model_classes import without_weights
from hfsae.model_kwargs import checked
from hfsae.parallel.launching import launched_here

logger = logging.getLogger(__name__)


@dataclass
class BaseModel:
    """The language model of a run, and how others find it again.

    Args:
        model: The causal LM, on its device, in evaluation mode. A `PeftModel` only where the model inside alone would
            compute something else: with a learnt prompt.
        tokenizer: Its tokenizer.
        origin: Where it comes from; None for an object that came without a name; of models side by side the first.
        others: Where the others of models side by side come from, in their order.
        stays: Whether it lies where a device map put it, and is not moved.
        read_in: What its products are made in while training text is read; None where none is.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    origin: Origin | None
    stays: bool = False
    read_in: torch.dtype | None = None
    others: tuple[Origin | None, ...] = ()


def open_base_model(
    args: SAETrainingArguments,
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    device: torch.device,
    devices: Sequence[torch.device] = (),
) -> BaseModel:
    """Loads the language model that the arguments name, or takes the object given.

    Args:
        args: The run's arguments.
        model: A causal LM, a wrapper around one, or its name; None takes `args.model_name_or_path`. Several, by the
            names of a crosscoder's sources, stand side by side, as those of `args.compare_model_name_or_path` do.
        tokenizer: Its tokenizer; None loads it.
        device: Where the model goes.
        devices: This process's own, over which `model_device_map` spreads it; none where all are its own.

    Raises:
        TypeError: If the object is no language model.
        ValueError: If neither is there, or several models have unequal tokenizers.
    """
    if compares(args, model):
        return _open_several(args, model, tokenizer, device, devices)
    if model is None or isinstance(model, str):
        origin = named_origin(args, model)
        tokenizer = tokenizer_of(origin) if tokenizer is None else tokenizer  # first: it may be missing
        lm = load(origin, **_precision_and_place(args, device, devices))
    else:
        origin, lm = _origin_of_object(args, model), model
        if tokenizer is None and (named := origin or _named(args, inner_model(lm))) is not None:
            tokenizer = tokenizer_of(named)
    lm = model_to_call(lm)
    stays = hasattr(inner_model(lm), "hf_device_map") or args.model_device_map is not None
    base = BaseModel(model=lm.eval(), tokenizer=tokenizer, origin=origin, stays=stays)
    move_base_model(base, device)
    return base


def _open_several(
    args: SAETrainingArguments,
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    device: torch.device,
    devices: Sequence[torch.device],
) -> BaseModel:
    """Opens models side by side, once their tokenizers have been found equal."""
    models = named_models(args, model)
    origins = {
        name: one if isinstance(one, Origin) else _origin_of_object(replace(args, model_name_or_path=None), one)
        for name, one in models.items()
    }
    tokenizers = {name: tokenizer_of(origin) for name, origin in origins.items() if origin is not None}
    if tokenizer is not None and len(tokenizers) < len(models):
        tokenizers["the run"] = tokenizer
    if tokenizers:
        refuse_unequal_tokenizers(tokenizers)
    place = _precision_and_place(args, device, devices)
    opened = {name: load(one, **place) if isinstance(one, Origin) else one for name, one in models.items()}
    side_by_side = SideBySide(opened)
    if tokenizer is None and tokenizers:
        tokenizer = tokenizer_of_all(tokenizers.values())
    stays = any(hasattr(inner_model(one), "hf_device_map") for one in side_by_side.models.values())
    first, *others = origins.values()
    base = BaseModel(side_by_side.eval(), tokenizer, first, stays or args.model_device_map is not None)
    base.others = tuple(others)
    move_base_model(base, device)
    return base


def named_origin(args: SAETrainingArguments, name: str | None = None) -> Origin:
    """Where the language model comes from that the arguments name, or another name in their place.

    Raises:
        ValueError: If there is no name.
    """
    name = name or args.model_name_or_path
    if name is None:
        raise ValueError("no language model: give model_name_or_path, a model object, or activations of your own.")
    return find(name, args.model_revision, args.model_kwargs)


def named_models(args: SAETrainingArguments, model: Any) -> dict[str, Any]:
    """The language models of a run by the names of their sources, a single one as `""`.

    Args:
        args: The run's arguments.
        model: What was given in their place, as `open_base_model` takes it.

    Returns:
        For each the object that was given, or where it comes from.

    Raises:
        ValueError: If there is none.
    """
    given = named_origin(args, model) if isinstance(model, str) else model
    if compares(args, model):
        return models_of(args, given, lambda: named_origin(args))
    return {"": named_origin(args) if given is None else given}


def planned_model(args: SAETrainingArguments, models: Mapping[str, Any]) -> PreTrainedModel:
    """The language model without weights, in the precision that it will be loaded in; several side by side.

    Args:
        args: The run's arguments.
        models: What `named_models` gives.
    """
    found = {name: _skeleton_of(args, one) for name, one in models.items()}
    return found[""] if "" in found else SideBySide(found)


def model_before_loading(args: SAETrainingArguments, model: Any) -> BaseModel | None:
    """The language model that a run names, without weights: a mistake shall not cost their loading.

    Args:
        args: The run's arguments.
        model: What was given in its place, as `open_base_model` takes it.

    Returns:
        None where nothing is to be loaded, and where a config may not tell all modules. Adapters, quantised weights
        and a model's own code may bring others.
    """
    models = named_models(args, model)
    if not all(isinstance(one, Origin) and _has_plain_modules(one) for one in models.values()):
        return None
    return BaseModel(planned_model(args, models), None, None, others=(None,) * (len(models) - 1))


def _has_plain_modules(origin: Origin) -> bool:
    """Whether transformers makes a language model's modules of its config alone."""
    if origin.adapter is not None or {"gguf_file", "quantization_config"} & origin.kwargs.keys():
        return False
    config = origin_config(origin)
    return not any(getattr(config, name, None) for name in ("quantization_config", "auto_map"))


def _skeleton_of(args: SAETrainingArguments, model: Any) -> PreTrainedModel:
    named = isinstance(model, Origin)
    config = origin_config(model) if named else inner_model(model).config
    dtype = args.model_dtype
    if dtype == "auto":
        dtype = (getattr(config, "dtype", None) or torch.float32) if named else model.dtype
    skeleton: Any = without_weights(config)
    return skeleton.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype).eval()


def _origin_of_object(args: SAETrainingArguments, model: Any) -> Origin | None:
    """Where a model comes from that was given as an object: its arguments' name, or its own; None without one."""
    origin = _named(args, inner_model(model))
    if quantised_in_place(inner_model(model)):
        logger.warning(
            "the language model was quantised after it was loaded, and nothing says how: the SAEs will name no "
            "language model. Load it with from_pretrained(..., quantization_config=...) to have it named."
        )
        return None
    if not getattr(model, "peft_config", None) or (origin is not None and origin.adapter is not None):
        return origin
    logger.warning(
        "the language model carries a PEFT adapter, and nothing says where that is kept: the SAEs will name no "
        "language model. Save it (model.save_pretrained('my-adapter')) and give model_name_or_path='my-adapter' too."
    )
    return None


def _named(args: SAETrainingArguments, model: PreTrainedModel) -> Origin | None:
    if (name := args.model_name_or_path or model.config.name_or_path or None) is None:
        return None
    origin = find(name, args.model_revision, args.model_kwargs)
    quantisation = getattr(model.config, "quantization_config", None)
    if quantisation is None or "quantization_config" in origin.kwargs or is_quantised(origin):
        return origin
    return replace(origin, kwargs={**origin.kwargs, **checked({"quantization_config": quantisation})})


def _precision_and_place(
    args: SAETrainingArguments, device: torch.device, devices: Sequence[torch.device]
) -> dict[str, Any]:
    """What the arguments say of the language model's numbers and devices, for `from_pretrained`."""
    dtype = args.model_dtype if args.model_dtype == "auto" else getattr(torch, args.model_dtype)
    if args.model_device_map is not None:
        return {"dtype": dtype, **_on_own(_device_map(args.model_device_map), devices)}
    if "quantization_config" in args.model_kwargs:  # some kinds cannot be moved once they are made
        return {"dtype": dtype, "device_map": {"": str(device)}}
    return {"dtype": dtype}


def _device_map(given: str) -> str | dict[str, Any]:
    """What transformers takes for a device map: a word, or module names with devices."""
    if not given.lstrip().startswith("{"):
        return given
    try:
        return json.loads(given)
    except json.JSONDecodeError as error:
        raise ValueError(f"model_device_map must be a word such as 'auto' or JSON, got {given!r}: {error}.") from error


def _on_own(device_map: str | dict[str, Any], devices: Sequence[torch.device]) -> dict[str, Any]:
    """A device map on the devices of this process alone, which it numbers from 0.

    Raises:
        ValueError: If it names a device that the process does not have.
    """
    own = [device for device in devices if device.type == "cuda"]
    if not own:
        return {"device_map": device_map}
    if isinstance(device_map, str):
        free: dict[Any, int] = {device.index: torch.cuda.mem_get_info(device)[0] for device in own}
        free["cpu"] = psutil.virtual_memory().available // launched_here()
        return {"device_map": device_map, "max_memory": free}
    return {"device_map": {name: _own_number(place, own) for name, place in device_map.items()}}


def _own_number(place: Any, own: Sequence[torch.device]) -> Any:
    kind, _, number = str(place).rpartition(":")
    if not number.isdigit():  # the host's memory, or the disk
        return place
    if int(number) >= len(own):
        raise ValueError(
            f"model_device_map names device {place}, but this process has {len(own)}, numbered from 0: of the devices "
            "of a machine each of its processes has an equal part. Launch fewer, or name others."
        )
    index = own[int(number)].index
    return f"{kind}:{index}" if kind else index


def move_base_model(base: BaseModel, device: torch.device) -> None:
    """Puts the language model on a device, unless it was spread over several."""
    if not base.stays:
        base.model.to(device)  # type: ignore[arg-type]
