"""The name that was probably meant, where somebody gives one that does not exist."""

import difflib
import functools
from collections.abc import Collection, Iterable
from dataclasses import fields
from typing import TypeVar

T = TypeVar("T")


def did_you_mean(name: object, known: Iterable[str], likeness: float = 0.6) -> str:
    """`" Did you mean 'hook_point'?"`, or nothing where no known name is near.

    Args:
        name: What was given.
        known: The names that exist.
        likeness: How alike the two must be, from 0 to 1.
    """
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=likeness)
    return f" Did you mean {near[0]!r}?" if near else ""


def refuse_misspelled(given: Iterable[str], known: Collection[str], of: str) -> None:
    """Raises a TypeError for a name that is unknown and close to a known one; other unknown names pass.

    Args:
        given: Names of arguments.
        known: The names that exist, as far as is known here.
        of: Whose arguments they are: `"SAE.from_pretrained"`.
    """
    for name in given:
        if name not in known and (hint := did_you_mean(name, known, likeness=0.8)):
            raise TypeError(f"{of} has no argument {name!r}.{hint}")


def names_near_matches(cls: type[T]) -> type[T]:
    """Lets a dataclass answer an unknown argument with the one that was probably meant.

    Args:
        cls: The dataclass; its constructor keeps its signature.
    """
    construct = cls.__init__
    known = [option.name for option in fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(construct)
    def __init__(self, *args, **kwargs):
        for name in kwargs.keys() - known:
            raise TypeError(f"{cls.__name__} has no argument {name!r}.{did_you_mean(name, known)}")
        construct(self, *args, **kwargs)

    cls.__init__ = __init__
    return cls
