"""What people give as an SAE, or as several: anything else is refused with its type."""

from collections.abc import Mapping
from os import PathLike

from hfsae.configuration import SAEConfig

ALONE = ""
"""The name of an SAE that is given by itself; messages leave it out."""


def refuse_unnamed(saes: object) -> None:
    """Refuses what is no mapping from names to SAEs.

    Raises:
        TypeError: With how SAEs are given.
    """
    if not isinstance(saes, Mapping):
        raise TypeError(
            f"SAEs are given by name, such as {{'mine': sae}} or load_saes(folder); got {type(saes).__name__}."
        )
    for name, sae in saes.items():
        if name == ALONE:
            refuse_no_sae(sae)
        else:
            refuse_no_sae(sae, repr(name))


def refuse_no_sae(sae: object, called: str = "what is given as SAE") -> None:
    """Refuses what is no SAE where one is expected, such as its name.

    Args:
        sae: What is given.
        called: What the message calls it.

    Raises:
        TypeError: With what was given.
    """
    if not isinstance(getattr(sae, "config", None), SAEConfig):
        known = ": load it with SAE.from_pretrained" if isinstance(sae, str | PathLike) else ""
        raise TypeError(f"{called} is a {type(sae).__name__}, no SAE{known}.")
