"""Training arguments that name files and folders of this machine, as records keep them."""

import os
from collections.abc import Mapping
from typing import Any

from hfsae.folders import in_full

_PLACES = ("model_name_or_path", "dataset_name", "eval_dataset_name", "init_from", "activation_cache")


def with_places_in_full(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, those that name a file or folder that is here with its absolute path."""
    places = {name: arguments[name] for name in _PLACES if isinstance(arguments.get(name), str)}
    own = {"output_dir": os.path.abspath(arguments["output_dir"])} if "output_dir" in arguments else {}
    return {**arguments, **{name: in_full(place) for name, place in places.items()}, **own}
