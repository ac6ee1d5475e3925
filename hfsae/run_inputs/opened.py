"""What a run reads: activations, a cache of them, or a model with text; and where its SAEs read and write in that."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from hfsae.arguments.sae_settings import hook_points_from_arguments, is_cross_layer, is_crosscoder
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.configuration import SAEConfig, join_places, places_in
from hfsae.data import RowSource
from hfsae.hooks import HookPointError, inner_model
from hfsae.hooks.limits import refuse_without_ids
from hfsae.hooks.width import width
from hfsae.in_model import SAEHookPoints, names_of
from hfsae.inputs import streams
from hfsae.inputs.activation_cache import Cache
from hfsae.inputs.base_model import BaseModel, model_before_loading, open_base_model
from hfsae.inputs.fingerprints import activations_digest, text_digest, weights_digest
from hfsae.inputs.text_splits import Texts, load_texts
from hfsae.language_model import record, record_sources
from hfsae.parallel.dealing import own_devices
from hfsae.run_inputs.user_inputs import SAEInput, UserInputs, own_hook_point, own_target


class Places(NamedTuple):
    """Where the SAEs of a run read and write, as far as a language model without weights can tell.

    Args:
        hook_points: By name of the SAE.
        widths: The size of the activations at each hook point.
        base: The language model, with or without weights; None where the user gives activations.
    """

    hook_points: dict[str, SAEHookPoints]
    widths: Mapping[str, int]
    base: BaseModel | None


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

    @property
    def places(self) -> Places:
        """Where the SAEs read and write."""
        return Places(self.hook_points, self.source.widths, self.base)


def places_before_loading(args: SAETrainingArguments, inputs: UserInputs) -> Places | None:
    """Where SAEs will read and write, by the config of the language model that a run names; no weights are loaded.

    Args:
        args: The run's arguments.
        inputs: What the user gave.

    Returns:
        None where no model is to be loaded, and where its config may not tell.

    Raises:
        HookPointError, OSError, ValueError: As `open_inputs`.
    """
    if inputs.activations is not None or args.activation_cache is not None:
        return None
    base = model_before_loading(args, inputs.model)
    if base is None:
        return None
    refuse_without_ids(base.model)
    hook_points = _in_language_model(args, inputs, base)
    try:
        widths = {place: width(base.model, place) for place in names_of(hook_points.values())}
    except RuntimeError:  # some show in a pass alone, and not every model passes without weights
        return None
    return Places(hook_points, widths, base)


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
    texts = load_texts(args, inputs.train_dataset, inputs.eval_dataset)  # first: a text may be missing
    base = open_base_model(args, inputs.model, inputs.tokenizer, accelerator.device, own_devices(accelerator))
    refuse_without_ids(base.model)
    hook_points = _in_language_model(args, inputs, base)
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
        reads, writes = own_hook_point(item, by_source=not base.others), own_target(item, args)
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
            name: (own_hook_point(sae) or args.hook_point, own_target(sae, args))
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
