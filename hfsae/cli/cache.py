"""`hfsae cache`: activations of a language model on disk, for as many training runs as wanted."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the config file and every training argument."""
    from hfsae.training.config_file import add_training_options

    add_training_options(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the cache, or goes on with it."""
    from accelerate import PartialState

    from hfsae.training.caching import cache_activations
    from hfsae.training.config_file import arguments_from

    training = arguments_from(vars(args), output_dir="activations")
    description = cache_activations(training)
    if not PartialState().is_main_process:
        return 0
    places = ", ".join(f"{name} (d = {width})" for name, width in description.widths.items())
    print(f"{training.output_dir}: {description.rows:,} rows of {places} in {description.dtype}")
    return 0
