"""Training arguments that name files and folders of this machine, as records keep them."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from hfsae.folders import in_full

# Arguments that may name several, with commas between.
_LISTS = ("compare_model_name_or_path",)
# Arguments that may name a file or folder.
PLACES = ("model_name_or_path", "dataset_name", "eval_dataset_name", "init_from", "activation_cache", *_LISTS)


def parts_of(name: str) -> list[tuple[str, str | None]]:
    """Names with their revisions: `[("org/a", None), ("org/b", "main")]` of `"org/a, org/b@main"`."""
    named = (part.strip().partition("@") for part in name.split(",") if part.strip())
    return [(place, revision or None) for place, _, revision in named]


def named_together(parts: Iterable[tuple[str, str | None]]) -> str:
    """The opposite of `parts_of`."""
    return ",".join(place if revision is None else f"{place}@{revision}" for place, revision in parts)


def same_place(before: Any, now: Any) -> bool:
    """Whether a place in a record is one that is named now, or was that until a push left its last part alone."""
    if isinstance(before, str) and isinstance(now, str) and "," in before:
        pairs = zip(before.split(","), now.split(","), strict=False)
        return before.count(",") == now.count(",") and all(same_place(*pair) for pair in pairs)
    is_short = isinstance(before, str) and isinstance(now, str) and "/" not in before and os.path.isabs(now)
    return before == now or (is_short and os.path.basename(now.rstrip("/")) == before)


def same_argument(name: str, before: Any, now: Any) -> bool:
    """Whether an argument has the value that a record has, a place as `same_place` says."""
    return same_place(before, now) if name in PLACES else before == now


def with_places_in_full(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name; a file or folder that is here has its absolute path."""
    places = {name: arguments[name] for name in PLACES if isinstance(arguments.get(name), str)}
    own = {"output_dir": os.path.abspath(arguments["output_dir"])} if "output_dir" in arguments else {}
    full = {
        name: named_together((in_full(part), revision) for part, revision in parts_of(place))
        if name in _LISTS
        else in_full(place)
        for name, place in places.items()
    }
    return {**arguments, **full, **own}
