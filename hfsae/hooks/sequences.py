"""What carries a sequence on from one forward pass to the next: caches and states, under whatever name."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn


@dataclass(frozen=True)
class Sequence:
    """What is known of a sequence that goes on from call to call.

    Attributes:
        read: Slots read.
        prompt_end: Slots of the prompt.
        virtual: Virtual tokens before the text.
        aside: Whether `generate` reads it beside the sequence that it was asked to go on with.
    """

    read: int
    prompt_end: int
    virtual: int
    aside: bool = False


class Sequences:
    """The sequences that go on from call to call, by the cache or state that carries them."""

    def __init__(self) -> None:
        self._by_cache: WeakKeyDictionary[Any, Sequence] = WeakKeyDictionary()
        self._states: list[Any] = []
        self._of_states: Sequence | None = None

    def find(self, carriers: Iterable[Any]) -> Sequence | None:
        """The first that is known of the names that some caches and states carry."""
        for carrier in carriers:
            if isinstance(carrier, list | tuple):
                known = self._of_states if any(carrier is state for state in self._states) else None
            else:
                known = self._by_cache.get(carrier)
            if known is not None:
                return known
        return None

    def note(self, carriers: Iterable[Any], sequence: Sequence) -> None:
        """Notes a sequence under all that the next call may be given to go on."""
        self._states, self._of_states = [], sequence
        for carrier in carriers:
            if isinstance(carrier, list | tuple):
                self._states.append(carrier)
            else:
                self._by_cache[carrier] = sequence


def is_cache(value: Any) -> bool:
    """Whether a value is a cache of keys and values."""
    return hasattr(value, "get_seq_length") and not isinstance(value, Tensor | nn.Module)


def carries(name: str, value: Any) -> bool:
    """Whether an argument or an output carries a sequence on: a cache, whatever its name, or a state."""
    if value is None or isinstance(value, Tensor | nn.Module | bool | int | float | str | dict):
        return False
    if is_cache(value):
        return True
    return any(word in name for word in ("state", "past", "mems", "cache")) and not name.endswith("hidden_states")


def length(cache: Any) -> int | None:
    """How many slots a cache holds; None for a state, and for a cache of states, which count none."""
    if not is_cache(cache):
        return None
    try:
        return int(cache.get_seq_length())
    except ValueError:
        return None


def is_fresh(carrier: Any) -> bool:
    """Whether a cache that does not count has nothing in it yet."""
    has_state = getattr(carrier, "has_previous_state", None)
    try:
        return has_state is not None and not (has_state() if callable(has_state) else has_state)
    except (ValueError, IndexError):
        return False
