"""What training arguments mean for one SAE: its config, and how its dead features come back."""

import dataclasses
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.registry import config_class_of
from hfsae.configuration import SAEConfig, places_in


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


def config_from_arguments(
    args: SAETrainingArguments, source: str, widths: list[int], target: tuple[str, int] | None = None
) -> SAEConfig:
    """The config of the SAE that the arguments describe.

    Args:
        args: The arguments.
        source: What the place that it reads is called; the places of a crosscoder, joined, name its sources.
        widths: Size of the activations there, or at each of the places.
        target: Of a transcoder, where it writes and the size of the activations there.

    Raises:
        ValueError: If they describe none.
    """
    config_class = config_class_of(args.architecture)
    fields = {field.name for field in dataclasses.fields(config_class)}
    options: dict[str, Any] = {"d_in": sum(widths)}
    if is_crosscoder(args.architecture):
        options |= {"source_names": places_in(source), "source_widths": widths}
    if "k" in fields:
        options["k"] = args.k
    if args.n_features is not None:
        options["n_features"] = args.n_features
    else:
        options["expansion_factor"] = args.expansion_factor
    if is_cross_layer(args.architecture) and target is None:
        raise ValueError(
            f"{args.architecture} predicts what layers write from what they read: pass target_hook_point too, such as "
            "hook_point='mlp_in.*' and target_hook_point='mlp_out.*'."
        )
    if target is not None:
        # What it writes lies elsewhere: its centre has nothing to do with what is read.
        options |= {"hook_point": source if is_cross_layer(args.architecture) else args.hook_point}
        options |= {"target_hook_point": target[0], "d_out": target[1]}
        options["subtract_b_dec"] = False
    assert isinstance(args.architecture_options, dict)
    try:
        return config_class(**{**options, **args.architecture_options})
    except StrictDataclassError as error:
        raise ValueError(f"these options make no {args.architecture} SAE: {error.__cause__ or error}") from error


def revival_of(sae: SparseAutoencoder, wanted: str) -> str:
    """How an SAE's dead features come back, where `"auto"` may be wanted.

    Raises:
        ValueError: If a transcoder's are to be resampled.
    """
    if sae.config.is_transcoder and wanted == "resample":
        raise ValueError(
            "revival='resample' points features at activations that are not reconstructed: a transcoder reconstructs "
            "others than it reads. Use revival='auxk' or 'repoint'."
        )
    if wanted == "repoint" and sae.config.is_cross_layer:
        raise ValueError("revival='repoint' is for transcoders of one layer; cross-layer ones have 'auxk'.")
    if wanted == "repoint" and not sae.config.is_transcoder:
        raise ValueError("revival='repoint' is for transcoders; autoencoders have 'resample', which does as much.")
    if wanted != "auto":
        return wanted
    return "auxk" if sae.config.is_transcoder else sae.default_revival
