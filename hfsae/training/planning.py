"""Which SAEs a run will train, and every reason why it cannot that needs no activations.

It is asked twice. The first time the language model has no weights yet, so that a mistake does not cost their loading.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from hfsae.arguments.sae_settings import config_from_arguments
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.configuration import SAEConfig
from hfsae.hooks import inner_model
from hfsae.in_model import SAEHookPoints
from hfsae.kl_finish.finish import reads_and_writes_at
from hfsae.modeling import SAE
from hfsae.parallel.placement import Placement
from hfsae.run_inputs.opened import Places
from hfsae.run_inputs.user_inputs import UserInputs, config_of
from hfsae.training.checkpoint import refuse_full_disk
from hfsae.training.schedule import Plan


class PlannedSAEs(NamedTuple):
    """The SAEs of a run before any is made.

    Args:
        arguments: The arguments of each by name: those of the run, but for what is its own.
        given: Each SAE that the user gives by name, or the config of one to be made.
        parameters: How many each has, by name.
    """

    arguments: dict[str, SAETrainingArguments]
    given: dict[str, SAE | SAEConfig]
    parameters: dict[str, int]


def planned_saes(
    args: SAETrainingArguments, inputs: UserInputs, loaded: UserInputs, places: Places, placement: Placement
) -> PlannedSAEs:
    """Works out which SAEs a run trains.

    Args:
        args: The run's arguments.
        inputs: What the user gives.
        loaded: The same with the published SAEs that some start from.
        places: Where the SAEs read and write.
        placement: How the processes share the SAEs.

    Raises:
        OSError: If the disk has no room for their checkpoints.
        ValueError: If the options make no SAE, or one that does not fit the activations, the processes or another
            option.
    """
    arguments = {name: inputs.arguments_of(name, args) for name in places.hook_points}
    given = {name: _fitting_sae(arguments[name], loaded, name, places) for name in places.hook_points}
    parameters = {}
    for name, item in given.items():
        skeleton = _skeleton(config_of(item))
        placement.refuse_unfit(skeleton)
        Plan.make(arguments[name], skeleton, placement)
        if args.kl_tokens:
            reads_and_writes_at(name, places.hook_points[name])
        parameters[name] = sum(parameter.numel() for parameter in skeleton.parameters())
    refuse_full_disk(Path(args.output_dir), args.save_total_limit, sum(parameters.values()))
    return PlannedSAEs(arguments, given, parameters)


def _skeleton(config: SAEConfig) -> SAE:
    """An SAE of this config without weights."""
    with torch.device("meta"):
        return SAE.from_config(copy.deepcopy(config))


def _fitting_sae(args: SAETrainingArguments, inputs: UserInputs, name: str, places: Places) -> SAE | SAEConfig:
    """The SAE that the user gives, or a config for one, if it fits the activations that it reads and writes.

    Raises:
        ValueError: If it does not; names it.
    """
    item, hook_points, widths = inputs.by_name.get(name), places.hook_points[name], places.widths
    if item is None or isinstance(item, Mapping):
        names = () if places.base is None else hook_points.source_names(inner_model(places.base.model))
        item = config_from_arguments(args, hook_points, widths, names)
    config = config_of(item)
    label = f"SAE {name!r}" if name else f"the {config.architecture} SAE"
    _refuse_other_sources(config, hook_points, hook_points.input_widths(widths), label)
    if places.base is not None and places.base.others:
        _refuse_other_models(config, inner_model(places.base.model), label)
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
