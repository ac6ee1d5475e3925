"""What the user gives to a training: the SAEs and what they read, as objects or by name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from hfsae.arguments.sae_settings import refuse_fixed_penalty, refuse_large_k, refuse_unread
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.registry import architecture_name, config_class_of
from hfsae.configuration import SAEConfig, join_places
from hfsae.data.tokenizer_identity import refuse_no_tokenizer
from hfsae.hooks import inner_model
from hfsae.language_model import cached_commit
from hfsae.modeling import SAE
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


def own_hook_point(item: SAEInput, *, by_source: bool = True) -> str | None:
    """Where an SAE says that it reads, in its own words; of sources that are no models, by their names."""
    if isinstance(item, Mapping):
        return item.get("hook_point")
    config = config_of(item)
    if config.hook_point is None and by_source and config.is_crosscoder:
        return join_places(config.source_names)  # type: ignore[attr-defined]
    return config.hook_point


def own_target(item: SAEInput, args: SAETrainingArguments) -> str | None:
    """Where an SAE says that it writes, in its own words; None where it says nothing of that."""
    if isinstance(item, Mapping):
        return item.get("target_hook_point", args.target_hook_point)
    return config_of(item).target_hook_point


def config_of(item: SAE | SAEConfig) -> SAEConfig:
    """The config of an SAE, or the config that was given for one."""
    return item.config if isinstance(item, SAE) else item
