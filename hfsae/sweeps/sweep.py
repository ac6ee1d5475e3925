"""Many SAEs on one stream: what a sweep's file means, and what comes out of it.

    architecture: [topk, jumprelu]      # a list: one SAE for each, and for every combination of lists
    k: [16, 32, 64]
    saes:                               # or, and on top of that: a list of SAEs, which may hold lists themselves
      - {architecture: gated, learning_rate: 1e-3}

A place with a wildcard, a range or commas stands for one SAE at each place. So `hook_point: mlp_in.*` with
`target_hook_point: mlp_out.*` makes a set of transcoders of each setting.

Everything else is a training argument. One pass of the language model feeds all SAEs, one pass over held-out text
measures them; each ends as it would have ended alone.
"""

import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from accelerate import PartialState

from hfsae.arguments.config_file import coerce, read_mapping, read_yaml, refuse_unknown
from hfsae.arguments.sae_settings import hook_points_from_arguments, refuse_impossible_saes, refuse_unread
from hfsae.arguments.training_arguments import PER_SAE, SAETrainingArguments
from hfsae.autoencoder.registry import architecture_name, config_class_of
from hfsae.estimate.run_needs import estimate, free_memory
from hfsae.failures import warn_on_failure
from hfsae.functional.precision import accelerator_here
from hfsae.hooks import inner_model
from hfsae.hub.zoo import push_saes
from hfsae.inputs.activation_cache import cache_activations
from hfsae.inputs.base_model import named_models, planned_model
from hfsae.inputs.starts import Starts
from hfsae.parallel.launching import launched
from hfsae.sweeps.sweep_results import result_rows, write_results
from hfsae.training.checkpoint import last_checkpoint
from hfsae.training.output import TrainOutput
from hfsae.training.trainer import SAETrainer

logger = logging.getLogger(__name__)

# How an argument that varies is written into a name, in this order; others as `name-value`.
_SPELLED = {
    "hook_point": "{}",
    "target_hook_point": "to-{}",
    "expansion_factor": "{:g}x",
    "n_features": "n{}",
    "k": "k{}",
    "target_l0": "l0-{:g}",
    "sparsity_coefficient": "lambda{:g}",
    "learning_rate": "lr{}",
    "seed": "seed{}",
}


@dataclass(frozen=True)
class Sweep:
    """Which SAEs are trained together.

    Args:
        args: The run's arguments.
        saes: Of each SAE by name, the arguments that are its own.
    """

    args: SAETrainingArguments
    saes: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path, options: Mapping[str, Any] | None = None) -> "Sweep":
        """The sweep that a YAML file describes.

        Args:
            path: The file.
            options: Arguments that win over those of the file, lists as YAML spells them: `{"k": "[8, 16]"}`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a name is unknown, a value has the wrong type, or two SAEs have one name. Likewise if a list
                stands where the SAEs of a run cannot differ.
        """
        known = {option.name for option in fields(SAETrainingArguments)}
        given = {name: _from_text(name, value) for name, value in (options or {}).items() if name in known}
        return cls.of({**read_mapping(path), **given}, where=str(path))

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str = "the sweep") -> "Sweep":
        """The sweep that the lines of a file describe; raises as `read` does."""
        entries = content.get("saes", [{}])
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{where}: saes must be a list of `name: value` groups, got {entries!r}.")
        shared = _choices({name: value for name, value in content.items() if name != "saes"}, where)
        args = SAETrainingArguments(**{name: values[0] for name, values in shared.items() if len(values) == 1})
        lists = {name: values for name, values in shared.items() if len(values) > 1}
        starts = Starts()
        wanted = [dict(own) for entry in entries for own in _combinations(entry, lists, args, starts, where)]
        varying = {name for own in wanted for name in own if len({str(other.get(name)) for other in wanted}) > 1}
        saes: dict[str, dict[str, Any]] = {}
        for own in wanted:
            name = own.pop("name", None) or _name(own, args, starts, varying)
            if name in saes and saes[name] != own:
                raise ValueError(f"{where}: two SAEs are called {name!r}; give each a `name` of its own.")
            saes[name] = own
        # What does not fit shall not cost the loading of a language model.
        arguments = starts.of_run(args, saes)
        refuse_unread({*args.given(), *lists}, list(arguments.values()))
        refuse_impossible_saes(arguments)
        return cls(args, saes)

    def at_each_place(self, model: Any = None) -> "Sweep":
        """The sweep with one SAE for each place, where an SAE names several; its name then ends with the place.

        Args:
            model: The language model, several by their names, or None for what the arguments name. Its config is
                enough.

        Raises:
            HookPointError: If the model lacks a place.
            ValueError: If there are not as many places to write as to read, or two SAEs get one name.
        """
        if not any(_may_be_several(self.args.of_sae(own).hook_point) for own in self.saes.values()):
            return self
        skeleton = inner_model(planned_model(self.args, named_models(self.args, model)))
        saes: dict[str, dict[str, Any]] = {}
        for name, own in self.saes.items():
            found = hook_points_from_arguments(self.args.of_sae(own), skeleton)
            for points in found:
                called, given = name, own
                if len(found) > 1:
                    place = points.portable_name(skeleton) or points.own_name(skeleton)
                    called, given = f"{name}-{place}", {**own, "hook_point": place}
                    if points.writes is not None:
                        given["target_hook_point"] = points.writes
                if called in saes:
                    raise ValueError(f"two SAEs are called {called!r}; give each a `name` of its own.")
                saes[called] = given
        return replace(self, saes=saes)


def _may_be_several(place: str) -> bool:
    """Whether a place has a wildcard, a comma or a range of layers."""
    return bool(re.search(r"[*,]|\d-\d", place))


def _from_text(name: str, value: Any) -> Any:
    listed = isinstance(value, str) and name in PER_SAE and value.lstrip().startswith("[")
    return read_yaml(value, f"--{name}") if listed else value


def _choices(content: Mapping[str, Any], where: str) -> dict[str, list[Any]]:
    """Every argument with the values it is to take, checked."""
    known = {option.name for option in fields(SAETrainingArguments)}
    choices = {}
    for name, value in content.items():
        refuse_unknown(name, sorted(known), where)
        values = value if isinstance(value, list) and name in PER_SAE else [value]
        if not values:
            raise ValueError(f"{where}: {name} is an empty list.")
        choices[name] = [coerce(name, one, f"{where}: {name}") for one in values]
    return choices


def _combinations(
    entry: Mapping[str, Any],
    lists: Mapping[str, list[Any]],
    args: SAETrainingArguments,
    starts: Starts,
    where: str,
) -> Iterator[dict[str, Any]]:
    """The SAEs that one entry of `saes` stands for, each once: the arguments that its kind reads."""
    for name in entry.keys() - {"name"}:
        refuse_unknown(name, sorted(PER_SAE), f"{where}: saes")
    own = _choices({name: value for name, value in entry.items() if name != "name"}, f"{where}: saes")
    choices = {**lists, **own}
    found: list[dict[str, Any]] = []
    for values in itertools.product(*choices.values()):
        sae = _relevant(dict(zip(choices, values, strict=True)), args, starts)
        if sae not in found:
            found.append(sae)
    refuse_unread(own, [starts.started(args.of_sae(sae)) for sae in found])
    if "name" in entry and len(found) > 1:
        raise ValueError(f"{where}: saes: the name {entry['name']!r} is given to {len(found)} SAEs.")
    for sae in found:
        yield {**sae, "name": entry["name"]} if "name" in entry else sae


def _relevant(own: dict[str, Any], args: SAETrainingArguments, starts: Starts) -> dict[str, Any]:
    """Without what has no effect: λ where there is a k, k where λ has another aim, a factor beside a width."""
    config_fields = config_class_of(_architecture(own, args, starts)).__dataclass_fields__
    if "k" in config_fields:
        unused = {"target_l0", "sparsity_coefficient"}
    else:
        unused = {"k"} if {"target_l0", "sparsity_coefficient"} & own.keys() else set()
    if own.get("n_features") is not None:
        unused.add("expansion_factor")
    return {name: value for name, value in own.items() if name not in unused}


def _architecture(own: Mapping[str, Any], args: SAETrainingArguments, starts: Starts) -> str:
    start = own.get("init_from", args.init_from)
    return own.get("architecture", args.architecture) if start is None else architecture_name(starts.config(start))


def _name(own: Mapping[str, Any], args: SAETrainingArguments, starts: Starts, varying: set[str]) -> str:
    """`"topk-resid_post.1-16x-k32"`: the architecture, and what else differs between the SAEs."""
    named = (varying & own.keys()) - {"architecture"}
    order = [name for name in _SPELLED if name in named] + sorted(named - _SPELLED.keys())
    order.sort(key=lambda name: name == "seed")  # last, so that names without it are those of a setting
    parts = [_architecture(own, args, starts)]
    parts += [_SPELLED.get(name, f"{name}-{{}}").format(own[name]) for name in order]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def run_sweep(sweep: Sweep, *, memory_bytes: int | None = None, **inputs: Any) -> TrainOutput:
    """Trains and measures every SAE of a sweep, and writes what came out into `sweep.args.output_dir`.

    Beside a folder for each SAE: `results.csv`, `results.json` (with the front at each hook point) and `pareto.png`.
    Where memory does not hold all SAEs at once, that is said first. They are then trained in groups, each in a folder
    of its own, from a cache of the activations. So the language model still runs once. With `push_to_hub` the lot is
    published in one repository, a folder each.

    Args:
        sweep: The sweep.
        memory_bytes: What there is for language model, window and SAEs; None for what the device has free.
        **inputs: For `SAETrainer`: `model`, `train_dataset`, `callbacks`, ... where they are objects.

    Returns:
        What training returned, of all groups together; without metrics where it was interrupted or evaluation is off.

    Raises:
        MemoryError: If an SAE does not fit by itself; before anything is loaded.
        ValueError, OSError: As `SAETrainer.train` does.
    """
    if inputs.get("activations") is None:
        sweep = sweep.at_each_place(inputs.get("model"))
    groups = _groups(sweep, memory_bytes, inputs)
    if len(groups) == 1:
        output = SAETrainer(args=sweep.args, saes=sweep.saes, **inputs).train()
    else:
        output = _train_in_groups(sweep, groups, inputs)
    if output.completed and PartialState().is_main_process:
        rows = result_rows(output, {name: sweep.args.of_sae(own) for name, own in sweep.saes.items()})
        write_results(rows, Path(sweep.args.output_dir))
    return output


def _groups(sweep: Sweep, memory_bytes: int | None, inputs: Mapping[str, Any]) -> list[list[str]]:
    """The SAEs that are trained together: all of them, where they fit."""
    if inputs.get("activations") is not None:
        return [list(sweep.saes)]
    device = torch.device("cpu") if sweep.args.use_cpu else accelerator_here() or torch.device("cpu")
    model = inputs.get("model")
    args = replace(sweep.args, model_name_or_path=model) if isinstance(model, str) else sweep.args
    given = None if isinstance(model, str) else model
    needs = estimate(args, sweep.saes, model=given, device_type=device.type, processes=launched())
    memory = free_memory(device) if memory_bytes is None else memory_bytes
    if needs.peak_bytes <= memory:
        return [list(sweep.saes)]
    groups = needs.groups(memory)
    logger.warning(
        "%d SAEs need %.2f GB at once and %.2f GB are free: they are trained in %d groups from an activation cache.",
        *(len(sweep.saes), needs.peak_bytes / 1e9, memory / 1e9, len(groups)),
    )
    return groups


def _train_in_groups(sweep: Sweep, groups: Sequence[list[str]], inputs: Mapping[str, Any]) -> TrainOutput:
    """One group after the other from one cache; goes on where it was interrupted, with `resume_from_checkpoint`."""
    folder, args = Path(sweep.args.output_dir), sweep.args
    if args.activation_cache is None:
        each = [args.of_sae(own) for own in sweep.saes.values()]
        places = dict.fromkeys(place for own in each for place in (own.hook_point, own.target_hook_point) if place)
        cached = replace(
            args, output_dir=str(folder / "activations"), hook_point=",".join(places), target_hook_point=None
        )
        of_text = {name: inputs[name] for name in ("model", "train_dataset", "processing_class") if name in inputs}
        cache_activations(cached, **of_text)
        args = replace(args, activation_cache=cached.output_dir)
    whole: TrainOutput | None = None
    for number, names in enumerate(groups, 1):
        place = folder / f"group-{number}"
        begun = args.resume_from_checkpoint is not None and last_checkpoint(place) is not None
        resume = "last" if begun else None
        of_group = replace(args, output_dir=str(place), resume_from_checkpoint=resume, push_to_hub=False)
        output = SAETrainer(args=of_group, saes={name: sweep.saes[name] for name in names}, **inputs).train()
        if whole is not None:
            output.saes, output.metrics = {**whole.saes, **output.saes}, {**whole.metrics, **output.metrics}
            output.configs = {**whole.configs, **output.configs}
            output.log_history = [*whole.log_history, *output.log_history]
        whole = output
        if not output.completed:
            break
    assert whole is not None
    if whole.completed and args.push_to_hub and PartialState().is_main_process:
        folders = {name: folder / f"group-{n}" / name for n, names in enumerate(groups, 1) for name in names}
        repo_id = args.hub_model_id or folder.resolve().name
        commands = "; ".join(
            f"hfsae push {quote(str(folder / f'group-{n}'))} {repo_id}" for n in range(1, len(groups) + 1)
        )
        with warn_on_failure("not pushed", f"push by hand: {commands}"):
            info = push_saes(
                folders,
                repo_id,
                revision=args.hub_revision,
                private=args.hub_private_repo,
                token=args.hub_token,
            )
            logger.info("pushed to %s", info.pr_url or info.repo_url)
    return whole
