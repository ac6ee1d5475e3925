"""`hfsae cache`: activations of a language model on disk, for as many training runs as wanted."""

from functools import partial

from hfsae.arguments.command_options import Config, with_training_options

_OUTPUT_DIR = "activations"


@partial(with_training_options, folder="Folder of the cache.", output_dir=_OUTPUT_DIR)
def run(config: Config = None, *, given: dict[str, str]) -> int:
    """Writes the cache, or goes on with it."""
    from accelerate import PartialState

    from hfsae.arguments.config_file import arguments_from
    from hfsae.inputs.activation_cache import cache_activations

    training = arguments_from({**given, "config": config}, output_dir=_OUTPUT_DIR)
    description = cache_activations(training)
    if not PartialState().is_main_process:
        return 0
    places = ", ".join(f"{name} (d = {width})" for name, width in description.widths.items())
    print(f"{training.output_dir}: {description.rows:,} rows of {places} in {description.dtype}")
    return 0
