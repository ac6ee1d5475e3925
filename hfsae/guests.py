"""What other installed packages add to hfsae by entry points: architectures, formats.

A package names them in its `pyproject.toml`, and pip notes it where `importlib.metadata` finds it:

    [project.entry-points."hfsae.architectures"]
    my_topk = "my_package.my_topk:MyTopKSAE"

Nothing of a guest is imported before it is asked for, and none that is broken stands in the way of the others.
"""

import logging
from importlib.metadata import EntryPoint, entry_points
from typing import Any

logger = logging.getLogger(__name__)

ARCHITECTURES = "hfsae.architectures"
FORMATS = "hfsae.formats"


class BrokenGuestError(ImportError):
    """An installed package offers something that cannot be imported."""


def names(group: str) -> list[str]:
    """What guests offer, by name; nothing is imported."""
    return sorted({point.name for point in entry_points(group=group)})


def load_guest(group: str, name: str) -> Any:
    """What a guest offers under a name; None where no installed package offers it.

    Raises:
        BrokenGuestError: If the package that offers it cannot be imported.
        ValueError: If several packages offer it.
    """
    found = list(entry_points(group=group, name=name))
    if not found:
        return None
    if len({point.value for point in found}) > 1:
        offering = " and ".join(sorted(map(_package, found)))
        raise ValueError(f"{offering} both offer {name!r} as one of {group}: uninstall one of them.")
    try:
        return found[0].load()
    except Exception as error:  # whatever a stranger's module raises
        raise BrokenGuestError(
            f"{_package(found[0])} offers {name!r} as one of {group}, but {found[0].value} cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error


def load_guests(group: str) -> dict[str, Any]:
    """All that guests offer and that can be imported; what cannot is logged as a warning."""
    found = {}
    for name in names(group):
        try:
            found[name] = load_guest(group, name)
        except (BrokenGuestError, ValueError) as error:
            logger.warning("%s", error)
    return found


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an installed package"
