"""What a run reads: activations that were brought, a cache of them, or a language model with its text."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from accelerate import Accelerator
from huggingface_hub import try_to_load_from_cache
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfsae.arguments.sae_settings import is_crosscoder
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.configuration import SAEConfig, join_places, places_in
from hfsae.data import RowSource
from hfsae.hooks import inner_model
from hfsae.hooks.limits import refuse_without_ids
from hfsae.in_model import portable_names, resolve_joined, separate
from hfsae.inputs import streams
from hfsae.inputs.activation_cache import Cache
from hfsae.inputs.base_model import BaseModel, open_base_model
from hfsae.inputs.text_splits import Texts, load_texts
from hfsae.modeling import SAE
from hfsae.parallel.placement import own_devices

SAEInput: TypeAlias = SAE | SAEConfig | Mapping[str, Any]
"""What one SAE of many is made of: itself, its config, or training arguments that are its own."""


@dataclass
class Inputs:
    """What the user handed to the trainer as objects; see `SAETrainer`."""

    model: Any
    saes: SAE | SAEConfig | Mapping[str, SAEInput] | None
    train_dataset: Any
    eval_dataset: Any
    tokenizer: PreTrainedTokenizerBase | None
    activations: Any

    @property
    def by_name(self) -> dict[str, SAEInput]:
        """What the SAEs are made of, by name; a single one is named `""`."""
        if self.saes is None:
            return {}
        return dict(self.saes) if isinstance(self.saes, Mapping) else {"": self.saes}

    def arguments_of(self, name: str, args: SAETrainingArguments) -> SAETrainingArguments:
        """The run's arguments with what one SAE has of its own.

        Raises:
            ValueError: If that does not fit; names the SAE.
        """
        own = self.by_name.get(name)
        if not isinstance(own, Mapping):
            return args
        try:
            return args.of_sae(own)
        except ValueError as error:
            raise ValueError(f"SAE {name!r}: {error}") from error


def with_published(inputs: Inputs, args: SAETrainingArguments) -> Inputs:
    """The same inputs, the SAEs that start from a published one loaded.

    Raises:
        ValueError: If what is asked for is not what was published.
        OSError: If there is nothing to load.
    """
    names = list(inputs.by_name) or [""]
    starts = {name: inputs.arguments_of(name, args) for name in names if not _is_object(inputs.by_name.get(name))}
    loaded = {name: _published(own) for name, own in starts.items() if own.init_from is not None}
    if not loaded:
        return inputs
    return replace(inputs, saes={name: loaded.get(name, inputs.by_name.get(name)) for name in names})  # type: ignore


def _is_object(item: SAEInput | None) -> bool:
    return isinstance(item, SAE | SAEConfig)


def _published(args: SAETrainingArguments) -> SAE:
    """The SAE that `init_from` names, as the start of a new training."""
    assert args.init_from is not None
    place, _, revision = args.init_from.partition("@")
    subfolder = ""
    if not os.path.isdir(place):
        owner, repository, *rest = [*place.split("/"), ""]
        place, subfolder = f"{owner}/{repository}", "/".join(rest).strip("/")
    sae = SAE.from_pretrained(place, subfolder=subfolder, revision=revision or None)
    config, given = sae.config, args.given()
    asked = {
        "architecture": args.architecture,
        "n_features": args.n_features,
        "expansion_factor": args.expansion_factor,
    }
    for name, value in asked.items():
        found = config.architecture if name == "architecture" else getattr(config, name)
        if name in given and value != found:
            raise ValueError(f"{name} is {value!r}, but {args.init_from} has {found!r}: leave it out, or start anew.")
    if "k" in given and hasattr(config, "k"):
        config.k = args.k  # type: ignore[attr-defined]
    if "hook_point" in given or config.hook_point is None:
        config.hook_point = args.hook_point
    if "target_hook_point" in given:
        config.target_hook_point = args.target_hook_point
    config.metrics = config.training = None  # they are of the weights that it starts from
    config._commit_hash = _cached_commit(place, subfolder, revision)
    return sae


def _cached_commit(place: str, subfolder: str, revision: str) -> str | None:
    """The commit of what was just loaded from the Hub, as the cache knows it; None for a local folder."""
    if os.path.isdir(place):
        return None
    name = f"{subfolder}/config.json".lstrip("/")
    found = try_to_load_from_cache(place, name, revision=revision or None)
    # .../snapshots/<commit>/<name>
    return Path(found).parents[name.count("/")].name if isinstance(found, str) else None


class Reading(NamedTuple):
    """What a run reads: its source of rows, and what is known of where they come from.

    Args:
        args: The run's arguments, what they leave open taken from the cache.
        source: The rows.
        places: The hook point of each SAE by name.
        targets: Where each transcoder writes, by name.
        base: See `Run`, like the others.
    """

    args: SAETrainingArguments
    source: RowSource
    places: dict[str, str]
    targets: dict[str, str]
    base: BaseModel | None
    texts: Texts | None
    held_out: dict[str, Tensor]
    prepend_bos: bool | None


def read(args: SAETrainingArguments, inputs: Inputs, accelerator: Accelerator) -> Reading:
    """Opens the activations that were brought, the cache, or the language model with its text.

    Args:
        args: The run's arguments.
        inputs: What the user brought.
        accelerator: The run's accelerator.

    Raises:
        ValueError: If they do not fit each other.
    """
    if inputs.activations is not None:
        brought, held_out = streams.hold_out(inputs.activations, args)
        source = streams.own_source(brought, accelerator)
        places, targets = _own_places(args, inputs, list(source.widths))
        return Reading(args, source, places, targets, None, None, held_out, None)
    if args.activation_cache is not None:
        return _read_cache(args, inputs, accelerator)
    base = open_base_model(args, inputs.model, inputs.tokenizer, accelerator.device, own_devices(accelerator))
    refuse_without_ids(base.model)
    places, targets = _model_places(args, inputs, base)
    texts = load_texts(args, inputs.train_dataset, inputs.eval_dataset)
    blocks = streams.training_blocks(args, texts.train, base, accelerator)
    source = streams.model_source(args, base, blocks, sorted(separate([*places.values(), *targets.values()])))
    return Reading(args, source, places, targets, base, texts, {}, blocks.prepend_bos)


def _read_cache(args: SAETrainingArguments, inputs: Inputs, accelerator: Accelerator) -> Reading:
    cache = Cache(args)
    args = cache.args
    base, texts = cache.skeleton(), None
    places, targets = _model_places(args, inputs, base)
    source = cache.source(sorted(separate([*places.values(), *targets.values()])), accelerator)
    if args.eval_tokens:
        # On the CPU until the end, when it is needed.
        base = open_base_model(args, inputs.model, inputs.tokenizer, torch.device("cpu"))
        texts = load_texts(args, inputs.train_dataset, inputs.eval_dataset)
        cache.refuse_other(base, texts)
    return Reading(args, source, places, targets, base, texts, source.held_out(), cache.prepend_bos)


def _model_places(
    args: SAETrainingArguments, inputs: Inputs, base: BaseModel
) -> tuple[dict[str, str], dict[str, str]]:
    """The canonical hook point of every SAE by name, and where those write that write elsewhere."""
    model = inner_model(base.model)
    if inputs.by_name:
        pairs = {}
        for name, item in inputs.by_name.items():
            named = _named_target(item, args)
            source = resolve_joined(model, _named_place(item, by_source=not base.others) or args.hook_point)
            target = resolve_joined(model, named) if named is not None else None
            pairs[name] = (source, target if target != source else None)
    else:
        points = streams.hook_points(args, base.model)
        alone = len(points) == 1
        pairs = {"" if alone else portable_names(model, pair[0]) or pair[0]: pair for pair in points}
    places = {name: source for name, (source, _) in pairs.items()}
    return places, {name: target for name, (_, target) in pairs.items() if target is not None}


def _own_places(
    args: SAETrainingArguments, inputs: Inputs, available: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Which of the activations that were brought each SAE reads, and which those write that write others."""
    if inputs.by_name:
        pairs = {
            name: (_named_place(item) or args.hook_point, _named_target(item, args))
            for name, item in inputs.by_name.items()
        }
    elif args.target_hook_point is not None:
        pairs = {"": (args.hook_point, args.target_hook_point)}
    elif is_crosscoder(args.architecture):
        pairs = {"": (join_places(available), None)}
    else:
        pairs = {"" if len(available) == 1 else name: (name, None) for name in available}
    places, targets = {}, {}
    for name, (read, written) in pairs.items():
        places[name] = read if len(available) > 1 else available[0]
        if written is not None and written != read:
            targets[name] = written
        for does, place in (("reads", places[name]), ("writes", targets.get(name, available[0]))):
            for part in places_in(place):
                if part not in available:
                    given = ", ".join(available)
                    raise ValueError(f"SAE {name!r} {does} {part!r}, but the activations given are of {given}.")
    return places, targets


def _named_place(item: SAEInput, *, by_source: bool = True) -> str | None:
    """Where an SAE says that it reads, in its own words; of sources that are no models, by their names."""
    if isinstance(item, Mapping):
        return item.get("hook_point")
    config = config_of(item)
    if config.hook_point is None and by_source and config.is_crosscoder:
        return join_places(config.source_names)  # type: ignore[attr-defined]
    return config.hook_point


def _named_target(item: SAEInput, args: SAETrainingArguments) -> str | None:
    """Where an SAE says that it writes, in its own words; None where it says nothing of that."""
    if isinstance(item, Mapping):
        return item.get("target_hook_point", args.target_hook_point)
    return config_of(item).target_hook_point


def config_of(item: SAE | SAEConfig) -> SAEConfig:
    """The config of an SAE, or the config that was given for one."""
    return item.config if isinstance(item, SAE) else item
