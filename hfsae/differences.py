"""What differs between two records, in words: of a cache, a table, a checkpoint and the run that goes on with it."""

from collections.abc import Iterable, Mapping
from typing import Any


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str] | None = None, inside: str = ""
) -> list[str]:
    """Every value that differs between two records, by its path: `made_from.seed was 0 and is 1`.

    Args:
        before: The record that is there.
        now: The record that it is held against.
        names: Only these values; None takes all that either record has.
        inside: The path of both records in larger ones, with its full stop.
    """
    found = []
    for name in {**before, **now} if names is None else names:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, inside=f"{inside}{name}.")
        elif old != new:
            found.append(f"{inside}{name} was {old!r} and is {new!r}")
    return found
