"""`Settings`: an object of somebody else's JSON or YAML, whose values are asked for by their kind."""

import math
import reprlib
from typing import Any


class Settings(dict[str, Any]):
    """A config of another project; a value that is not there and one that is null are the same.

    Args:
        content: What the file holds.
        called: What errors call the file, such as `"cfg.json of FOLDER"`.
        inside: The keys that lead to this object, with a dot behind each.
    """

    def __init__(self, content: dict[str, Any], called: str, inside: str = ""):
        super().__init__(content)
        self.called, self._inside = called, inside

    def having(self, *keys: str) -> "Settings":
        """Itself.

        Raises:
            ValueError: If a key has no value, naming it.
        """
        missing = [f"{self._inside}{key}" for key in keys if self.get(key) is None]
        if missing:
            raise ValueError(f"{self.called} lacks {', '.join(missing)}.")
        return self

    def text(self, key: str) -> str | None:
        """A text; None if there is none.

        Raises:
            ValueError: If it is of another kind, naming it; so with the other methods.
        """
        return self._of(key, str, "a text")

    def whole(self, key: str) -> int | None:
        """A whole number, also where it is written as 32.0."""
        value = self._of(key, (int, float), "a whole number")
        if isinstance(value, float) and not value.is_integer():
            raise self.unexpected(key, "a whole number")
        return None if value is None else int(value)

    def number(self, key: str) -> float | None:
        """A finite number."""
        value = self._of(key, (int, float), "a number")
        if value is not None and not math.isfinite(value):
            raise self.unexpected(key, "a finite number")
        return None if value is None else float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.unexpected(key, "true or false")
        return default if value is None else value

    def section(self, key: str) -> "Settings":
        """An object inside this one; an empty one if there is none."""
        return Settings(self._of(key, dict, "an object") or {}, self.called, f"{self._inside}{key}.")

    def wholes(self, key: str) -> list[int] | None:
        """A list of whole numbers."""
        value = self._of(key, list, "a list of whole numbers")
        if value is not None and not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            raise self.unexpected(key, "a list of whole numbers")
        return value

    def one_of(self, key: str, known: dict[str, str], default: str) -> str:
        """What a table says of a text.

        Raises:
            ValueError: If the table lacks it: it has no counterpart here.
        """
        value = self.get(key) or default
        if not isinstance(value, str) or value not in known:
            raise ValueError(
                f"{self.called} has {self._inside}{key} = {_shown(value)}, which has no counterpart here; known are "
                f"{', '.join(known)}."
            )
        return known[value]

    def _of(self, key: str, kind: Any, expected: str) -> Any:
        value = self.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise self.unexpected(key, expected)
        return value

    def unexpected(self, key: str, expected: str) -> ValueError:
        """The error for a value that cannot be."""
        return ValueError(f"{self.called} has {self._inside}{key} = {_shown(self[key])}, expected {expected}.")


def _shown(value: Any) -> str:
    return reprlib.repr(value)
