"""What training arguments mean for one SAE: its config, and how its dead features come back."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.registry import class_of, config_class_of
from hfsae.configuration import SAEConfig
from hfsae.functional.selection import refuse_impossible_k
from hfsae.in_model import SAEHookPoints, hook_points_named


def is_crosscoder(architecture: str) -> bool:
    """Whether SAEs of an architecture have several sources.

    Raises:
        ValueError: If there is no such architecture.
    """
    return "source_names" in {field.name for field in dataclasses.fields(config_class_of(architecture))}


def is_cross_layer(architecture: str) -> bool:
    """Whether SAEs of an architecture read and write several layers, all of them together.

    Raises:
        ValueError: If there is no such architecture.
    """
    return "tied_decoder" in {field.name for field in dataclasses.fields(config_class_of(architecture))}


def has_penalty(args: SAETrainingArguments) -> bool:
    """Whether the architecture has a sparsity penalty, which λ weighs and `target_l0` steers.

    Raises:
        ValueError: If there is no such architecture.
    """
    return class_of(args.architecture).default_sparsity_coefficient is not None


_OF_A_PENALTY = "steers a sparsity penalty, which {} has not: its k says how many features are active"
# Which SAEs read an argument, and what is wrong where none does.
_READ_BY: dict[str, tuple[Callable[[SAETrainingArguments], bool], str]] = {
    **dict.fromkeys(("target_l0", "sparsity_coefficient", "sparsity_warmup_fraction"), (has_penalty, _OF_A_PENALTY)),
    "lr_end": (
        lambda args: args.lr_scheduler_type != "constant",
        "is where a cosine or linear schedule ends, and the rate of {} is constant: give lr_scheduler_type too",
    ),
    "kl_weight": (lambda args: args.kl_tokens > 0, "is of the last kl_tokens of a run: give kl_tokens too"),
}


def refuse_unread(given: Iterable[str], saes: Sequence[SAETrainingArguments]) -> None:
    """Refuses an argument that was given for SAEs of which none reads it.

    Args:
        given: Names of arguments.
        saes: The arguments of each SAE that they were given for.

    Raises:
        ValueError: If one is such; says why.
    """
    for name, (reads, why) in _READ_BY.items():
        if name in given and not any(map(reads, saes)):
            named = ", ".join(dict.fromkeys(own.architecture for own in saes))
            raise ValueError(f"{name} {why.format(named)}.")


def refuse_large_k(args: SAETrainingArguments) -> None:
    """Refuses more active features than there are, as the config does once the language model's widths are known.

    Args:
        args: The arguments of one SAE.

    Raises:
        ValueError: If they ask for that.
    """
    assert isinstance(args.architecture_options, dict)
    k, n = (args.architecture_options.get(name, getattr(args, name)) for name in ("k", "n_features"))
    if n is None or not hasattr(config_class_of(args.architecture), "validate_k"):
        return
    try:
        refuse_impossible_k(k, n)
    except ValueError as error:
        raise ValueError(f"these options make no {args.architecture} SAE: {error}") from error


def refuse_fixed_penalty(args: SAETrainingArguments, config: SAEConfig | None = None) -> None:
    """Refuses a fixed λ where the loss needs a number of active features to aim at.

    Args:
        args: The arguments of one SAE.
        config: Its config, where it has one; else the arguments describe it.

    Raises:
        ValueError: If they do not go together.
    """
    assert isinstance(args.architecture_options, dict)
    of = config_class_of(args.architecture) if config is None else type(config)
    options = args.architecture_options if config is None else vars(config)
    if args.sparsity_coefficient is not None and of.needs_target_l0(options):
        raise ValueError(
            f"sparsity={options.get('sparsity')!r} is the distance to a number of active features, which "
            "sparsity_coefficient leaves open: give target_l0 in its place."
        )


def refuse_impossible_saes(arguments: Mapping[str, SAETrainingArguments]) -> None:
    """`refuse_fixed_penalty` and `refuse_large_k` of several SAEs.

    Args:
        arguments: The arguments of each SAE by name.

    Raises:
        ValueError: Names the SAE.
    """
    for name, own in arguments.items():
        try:
            refuse_fixed_penalty(own)
            refuse_large_k(own)
        except ValueError as error:
            raise ValueError(f"SAE {name!r}: {error}" if name else str(error)) from error


def hook_points_from_arguments(args: SAETrainingArguments, model: nn.Module) -> list[SAEHookPoints]:
    """Where the SAEs that the arguments describe read and write in a language model.

    Raises:
        HookPointError, ValueError: As `hook_points_named`.
    """
    cross_layer = is_cross_layer(args.architecture)
    return hook_points_named(model, args.hook_point, args.target_hook_point, cross_layer=cross_layer)


def config_from_arguments(
    args: SAETrainingArguments,
    hook_points: SAEHookPoints,
    widths: Mapping[str, int],
    source_names: Sequence[str] = (),
) -> SAEConfig:
    """The config of the SAE that the arguments describe.

    Args:
        args: The arguments.
        hook_points: Where it reads and writes.
        widths: Size of the activations by hook point.
        source_names: What the sources of a crosscoder are called; as the hook points that it reads, where left out.

    Raises:
        ValueError: If they describe none, or its loss cannot have their λ.
    """
    config_class = config_class_of(args.architecture)
    fields = {field.name for field in dataclasses.fields(config_class)}
    input_widths = hook_points.input_widths(widths)
    options: dict[str, Any] = {"d_in": sum(input_widths)}
    if is_crosscoder(args.architecture):
        names = list(source_names) or hook_points.read_names
        options |= {"source_names": names, "source_widths": input_widths}
    if "k" in fields:
        options["k"] = args.k
    if args.n_features is not None:
        options["n_features"] = args.n_features
    else:
        options["expansion_factor"] = args.expansion_factor
    if is_cross_layer(args.architecture) and hook_points.writes is None:
        raise ValueError(
            f"{args.architecture} predicts what layers write from what they read: pass target_hook_point too, such as "
            "hook_point='mlp_in.*' and target_hook_point='mlp_out.*'."
        )
    if hook_points.writes is not None:
        # What it writes lies elsewhere: its centre has nothing to do with what is read.
        reads = hook_points.reads if is_cross_layer(args.architecture) else args.hook_point
        options |= {"hook_point": reads, "target_hook_point": hook_points.writes}
        options |= {"d_out": hook_points.output_width(widths), "subtract_b_dec": False}
    assert isinstance(args.architecture_options, dict)
    try:
        config = config_class(**{**options, **args.architecture_options})
    except StrictDataclassError as error:
        raise ValueError(f"these options make no {args.architecture} SAE: {error.__cause__ or error}") from error
    refuse_fixed_penalty(args, config)
    return config


def revival_of(sae: SparseAutoencoder, wanted: str) -> str:
    """How an SAE's dead features come back, where `"auto"` may be wanted.

    Raises:
        ValueError: If a transcoder's are to be resampled. Likewise if features that may be negative, or whose decoder
            rows read, are to be repointed.
    """
    if sae.config.is_transcoder and wanted == "resample":
        raise ValueError(
            "revival='resample' points features at activations that are not reconstructed: a transcoder reconstructs "
            "others than it reads. Use revival='auxk' or 'repoint'."
        )
    if wanted == "repoint" and sae.signed:
        raise ValueError(
            "revival='repoint' sets how far features rise above 0, and those of "
            f"{type(sae).__name__} may lie below it: use revival='auxk'."
        )
    if wanted == "repoint" and not sae._encoder_matrices:
        raise ValueError(
            "revival='repoint' sets encoder rows and biases, and decoder rows are all that "
            f"{type(sae).__name__} has: use revival='auxk'."
        )
    if wanted != "auto":
        return wanted
    return "repoint" if sae.config.is_transcoder and not sae.signed else sae.default_revival
