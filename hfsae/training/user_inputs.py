"""What the user gives to a training, and what the run reads: activations, a cache of them, or a model with text."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hfsae.arguments.sae_settings import (
    config_from_arguments,
    hook_points_from_arguments,
    is_cross_layer,
    is_crosscoder,
    refuse_fixed_penalty,
    refuse_large_k,
    refuse_unread,
)
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.registry import architecture_name, config_class_of
from hfsae.configuration import SAEConfig, join_places, places_in
from hfsae.data import RowSource
from hfsae.data.tokenizer_identity import refuse_no_tokenizer
from hfsae.hooks import HookPointError, inner_model
from hfsae.hooks.limits import refuse_without_ids
from hfsae.in_model import SAEHookPoints, names_of
from hfsae.inputs import streams
from hfsae.inputs.activation_cache import Cache
from hfsae.inputs.base_model import BaseModel, open_base_model
from hfsae.inputs.fingerprints import activations_digest, text_digest, weights_digest
from hfsae.inputs.text_splits import Texts, load_texts
from hfsae.language_model import cached_commit, record, record_sources
from hfsae.modeling import SAE
from hfsae.parallel.dealing import own_devices
from hfsae.sae_folders import place_of

TWO_SOURCES = "give a language model with text or their cache, or activations of your own, not both."

SAEInput: TypeAlias = SAE | SAEConfig | Mapping[str, Any]
"""What one SAE of many is made of: itself, its config, or training arguments that are its own."""


@dataclass
class UserInputs:
    """What the user gives to the trainer as objects; see `SAETrainer`."""

    model: Any
    saes: SAE | SAEConfig | Mapping[str, SAEInput] | None
    train_dataset: Any
    eval_dataset: Any
    tokenizer: PreTrainedTokenizerBase | None
    activations: Any

    def __post_init__(self) -> None:
        if isinstance(self.model, SAE | SAEConfig):
            raise TypeError("the first argument is the language model; SAEs are given as SAETrainer(saes=...).")
        self.model = os.fspath(self.model) if isinstance(self.model, os.PathLike) else self.model
        for model in self.model.values() if isinstance(self.model, Mapping) else [self.model]:
            if model is not None and not isinstance(model, str):
                inner_model(model)  # or says what is wrong
        if self.tokenizer is not None:
            refuse_no_tokenizer(self.tokenizer)
        if self.activations is not None and (self.model is not None or self.train_dataset is not None):
            raise ValueError(TWO_SOURCES)

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

    def refuse_unread(self, args: SAETrainingArguments, starts: Mapping[str, SAEInput]) -> None:
        """Refuses an unknown architecture, arguments that no SAE of the run reads, and a λ that an SAE cannot have.

        Args:
            args: The run's arguments.
            starts: What the SAEs are made of where `with_published` has loaded what some start from, by name.

        Raises:
            ValueError: Names the architecture or the argument.
        """
        each = []
        for name in self.by_name or [""]:
            item, own = self.by_name.get(name), self.arguments_of(name, args)
            config = config_of(start) if _is_object(start := starts.get(name)) else None  # type: ignore[arg-type]
            if config is not None:
                own = replace(own, architecture=architecture_name(config))
            config_class_of(own.architecture)
            try:
                if isinstance(item, Mapping):
                    refuse_unread(item, [own])
                refuse_fixed_penalty(own, config)
                if config is None:
                    refuse_large_k(own)
            except ValueError as error:
                raise ValueError(f"SAE {name!r}: {error}" if name else str(error)) from error
            each.append(own)
        refuse_unread(args.given(), each)


def with_published(inputs: UserInputs, args: SAETrainingArguments) -> UserInputs:
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
    place, where = place_of(args.init_from)
    sae = SAE.from_pretrained(place, **where)
    config, given = sae.config, args.given()
    asked = {
        "architecture": args.architecture,
        "n_features": args.n_features,
        "expansion_factor": args.expansion_factor,
    }
    for name, value in asked.items():
        found = config.architecture if name == "architecture" else getattr(config, name)
        if name in given and value != found:
            raise ValueError(f"{name} is {value!r}, but {args.init_from} has {found!r}: leave it out, or start again.")
    assert isinstance(args.architecture_options, dict)
    for name, value in args.architecture_options.items():
        if (found := getattr(config, name, None)) != value:
            raise ValueError(
                f"architecture_options ask for {name}={value!r}, but {args.init_from} has {found!r}: leave it out, or "
                "load that SAE, change its config, and pass it as SAETrainer(saes=...)."
            )
    if "k" in given and hasattr(config, "k"):
        config.k = args.k  # type: ignore[attr-defined]
    if "hook_point" in given or config.hook_point is None:
        config.hook_point = args.hook_point
    if "target_hook_point" in given:
        config.target_hook_point = args.target_hook_point
    config.metrics = config.training = None  # they are of the weights that it starts from
    config._commit_hash = cached_commit(place, where["subfolder"], where["revision"] or "")
    return sae


class RunInputs(NamedTuple):
    """What a run reads, and where the SAEs read and write.

    Args:
        args: The run's arguments, what they leave open taken from the cache.
        source: The rows.
        hook_points: Where each SAE reads and writes, by name.
        base: See `TrainingRun`, as for the others.
        digests: What tells model, text or activations from others of the same name, as far as it is known.
    """

    args: SAETrainingArguments
    source: RowSource
    hook_points: dict[str, SAEHookPoints]
    base: BaseModel | None
    texts: Texts | None
    held_out: dict[str, Tensor]
    prepend_bos: bool | None
    digests: dict[str, str | None]


def open_inputs(args: SAETrainingArguments, inputs: UserInputs, accelerator: Accelerator) -> RunInputs:
    """Opens the user's activations, the activation cache, or the language model with its text.

    Args:
        args: The run's arguments.
        inputs: What the user gave.
        accelerator: The run's accelerator.

    Raises:
        ValueError: If they do not fit each other.
    """
    if inputs.activations is not None:
        activations, held_out = streams.hold_out(inputs.activations, args)
        source = streams.own_source(activations, accelerator)
        hook_points = _among_activations(args, inputs, list(source.widths))
        digests = {"activations": activations_digest(activations)}
        return RunInputs(args, source, hook_points, None, None, held_out, None, digests)
    if args.activation_cache is not None:
        return _open_cache(args, inputs, accelerator)
    base = open_base_model(args, inputs.model, inputs.tokenizer, accelerator.device, own_devices(accelerator))
    refuse_without_ids(base.model)
    hook_points = _in_language_model(args, inputs, base)
    texts = load_texts(args, inputs.train_dataset, inputs.eval_dataset)
    # Before the text is read: a stream has one state for all who read it.
    digests = {"text": text_digest(args, texts.train), "language model": weights_digest(base.model)}
    blocks = streams.training_blocks(args, texts.train, base, accelerator)
    source = streams.model_source(args, base, blocks, sorted(names_of(hook_points.values())))
    return RunInputs(args, source, hook_points, base, texts, {}, blocks.prepend_bos, digests)


def _open_cache(args: SAETrainingArguments, inputs: UserInputs, accelerator: Accelerator) -> RunInputs:
    cache = Cache(args)
    args = cache.args
    base, texts = cache.skeleton(), None
    hook_points = _in_language_model(args, inputs, base)
    source = cache.source(sorted(names_of(hook_points.values())), accelerator)
    if args.eval_tokens:
        # On the CPU until the end, when it is needed.
        base = open_base_model(args, inputs.model, inputs.tokenizer, torch.device("cpu"))
        texts = load_texts(args, inputs.train_dataset, inputs.eval_dataset)
        cache.refuse_other(base, texts)
    return RunInputs(args, source, hook_points, base, texts, source.held_out(), cache.prepend_bos, {})


def _in_language_model(args: SAETrainingArguments, inputs: UserInputs, base: BaseModel) -> dict[str, SAEHookPoints]:
    """Where in the language model each SAE reads and writes, by canonical names."""
    model = inner_model(base.model)
    if inputs.by_name:
        return {name: _own_hook_points(args, name, sae, base) for name, sae in inputs.by_name.items()}
    found = hook_points_from_arguments(args, model)
    if len(found) == 1:
        return {"": found[0]}
    return {points.portable_name(model) or points.reads: points for points in found}


def _own_hook_points(args: SAETrainingArguments, name: str, item: SAEInput, base: BaseModel) -> SAEHookPoints:
    """Where one of several SAEs reads and writes in the language model."""
    model = inner_model(base.model)
    try:
        if isinstance(item, Mapping) and is_cross_layer(item.get("architecture", args.architecture)):
            return hook_points_from_arguments(args.of_sae(item), model)[0]  # of a range of layers it is one
        reads, writes = _own_hook_point(item, by_source=not base.others), _own_target(item, args)
        return SAEHookPoints.resolved(model, reads or args.hook_point, writes)
    except HookPointError as error:
        raise HookPointError(f"SAE {name!r}: {error}") from error


def _among_activations(
    args: SAETrainingArguments, inputs: UserInputs, available: list[str]
) -> dict[str, SAEHookPoints]:
    """Which of the user's activations each SAE reads, and which it writes.

    Raises:
        ValueError: If there are none of that name.
    """
    if inputs.by_name:
        pairs = {
            name: (_own_hook_point(sae) or args.hook_point, _own_target(sae, args))
            for name, sae in inputs.by_name.items()
        }
    elif args.target_hook_point is not None:
        pairs = {"": (args.hook_point, args.target_hook_point)}
    elif is_crosscoder(args.architecture):
        pairs = {"": (join_places(available), None)}
    else:
        pairs = {"" if len(available) == 1 else name: (name, None) for name in available}
    found = {}
    for name, (reads, writes) in pairs.items():
        there = reads if len(available) > 1 else available[0]
        found[name] = SAEHookPoints(there, writes if writes != reads else None)
        for does, place in (("reads", there), ("writes", found[name].writes or available[0])):
            for part in places_in(place):
                if part not in available:
                    given = ", ".join(available)
                    raise ValueError(f"SAE {name!r} {does} {part!r}, but the activations given are of {given}.")
    return found


def _own_hook_point(item: SAEInput, *, by_source: bool = True) -> str | None:
    """Where an SAE says that it reads, in its own words; of sources that are no models, by their names."""
    if isinstance(item, Mapping):
        return item.get("hook_point")
    config = config_of(item)
    if config.hook_point is None and by_source and config.is_crosscoder:
        return join_places(config.source_names)  # type: ignore[attr-defined]
    return config.hook_point


def _own_target(item: SAEInput, args: SAETrainingArguments) -> str | None:
    """Where an SAE says that it writes, in its own words; None where it says nothing of that."""
    if isinstance(item, Mapping):
        return item.get("target_hook_point", args.target_hook_point)
    return config_of(item).target_hook_point


def config_of(item: SAE | SAEConfig) -> SAEConfig:
    """The config of an SAE, or the config that was given for one."""
    return item.config if isinstance(item, SAE) else item


def fitting_sae(args: SAETrainingArguments, inputs: UserInputs, name: str, opened: RunInputs) -> SAE | SAEConfig:
    """The SAE that the user gives, or a config for one, if it fits the activations that it reads and writes.

    Raises:
        ValueError: If it does not; names it.
    """
    item, hook_points, widths = inputs.by_name.get(name), opened.hook_points[name], opened.source.widths
    if item is None or isinstance(item, Mapping):
        names = () if opened.base is None else hook_points.source_names(inner_model(opened.base.model))
        item = config_from_arguments(args, hook_points, widths, names)
    config = config_of(item)
    label = f"SAE {name!r}" if name else f"the {config.architecture} SAE"
    _refuse_other_sources(config, hook_points, hook_points.input_widths(widths), label)
    if opened.base is not None and opened.base.others:
        _refuse_other_models(config, inner_model(opened.base.model), label)
    input_width, output_width = sum(hook_points.input_widths(widths)), hook_points.output_width(widths)
    for field, place, there in (
        ("d_in", hook_points.reads, input_width),
        ("d_out", hook_points.target, output_width),
    ):
        if (size := getattr(config, field)) != there:
            raise ValueError(f"{label} has {field}={size}, but the activations at {place} have {there} dimensions.")
    return item


def _refuse_other_sources(config: SAEConfig, hook_points: SAEHookPoints, widths: list[int], label: str) -> None:
    """Refuses an SAE of one source where several places are joined, and a crosscoder whose sources are others.

    Raises:
        ValueError: Names the SAE by its label.
    """
    parts, own = hook_points.read_names, config.input_widths
    if len(parts) > 1 and len(own) == 1:
        raise ValueError(
            f"{label} reads one place, but {hook_points.reads} joins {len(parts)}: choose a crosscoder "
            "(architecture='crosscoder'), or part the places with commas for an SAE each."
        )
    if len(parts) == 1 and len(own) > 1 and sum(own) == sum(widths):
        return  # rows that the user has joined already
    if own != widths and len(own) > 1:
        raise ValueError(
            f"{label} has source_widths={own}, but the activations at {hook_points.reads} have {widths} dimensions: "
            "join the places of its sources with +, in their order."
        )


def _refuse_other_models(config: SAEConfig, model: nn.Module, label: str) -> None:
    """Refuses a crosscoder whose sources are not the models that stand side by side, in their order.

    Raises:
        ValueError: Names the SAE by its label.
    """
    names, given = list(getattr(config, "source_names", [])), list(getattr(model, "models", {}))
    if names != given:
        raise ValueError(f"{label} has the sources {', '.join(names)}, but the models are {', '.join(given)}.")


def record_origin(args: SAETrainingArguments, opened: RunInputs, config: SAEConfig, name: str) -> None:
    """Writes into the config what its user will have to know."""
    if opened.base is None:
        return
    hook_points = opened.hook_points[name]
    config.hook_point = hook_points.own_name(inner_model(opened.base.model))
    config.target_hook_point = hook_points.writes
    if opened.base.others:
        record_sources([opened.base.origin, *opened.base.others], config)
    else:
        record(opened.base.origin, config)
    config.context_length = args.context_length
    config.prepend_bos = opened.prepend_bos
    config.exclude_special_tokens = args.exclude_special_tokens
    config.exclude_positions = list(args.exclude_positions)
