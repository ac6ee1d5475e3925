"""Training arguments that name files and folders of this machine, as records keep them."""

import os
from collections.abc import Mapping
from typing import Any

from hfsae.folders import in_full

# Arguments that may name a file or folder.
PLACES = ("model_name_or_path", "dataset_name", "eval_dataset_name", "init_from", "activation_cache")


def same_place(before: Any, now: Any) -> bool:
    """Whether a place in a record is one that is named now, or was that until a push left its last part alone."""
    is_short = isinstance(before, str) and isinstance(now, str) and "/" not in before and os.path.isabs(now)
    return before == now or (is_short and os.path.basename(now.rstrip("/")) == before)


def with_places_in_full(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, those that name a file or folder that is here with its absolute path."""
    places = {name: arguments[name] for name in PLACES if isinstance(arguments.get(name), str)}
    own = {"output_dir": os.path.abspath(arguments["output_dir"])} if "output_dir" in arguments else {}
    return {**arguments, **{name: in_full(place) for name, place in places.items()}, **own}
