"""Ranges of figures, and figures in as many digits as show on which side of an end they lie."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """An interval; None leaves a side open."""

    low: float | None = None
    high: float | None = None

    def __contains__(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def times(self, factor: float) -> "Interval":
        """The interval with its ends so many times as far from 0."""
        return Interval(*(None if end is None else factor * end for end in (self.low, self.high)))

    def __str__(self) -> str:
        if self.low is None:
            return f"< {self.high:g}"
        return f"> {self.low:g}" if self.high is None else f"{self.low:g} – {self.high:g}"


def told_apart(value: float, text: str, ends: Iterable[float | None]) -> str:
    """The text of a value, with more digits where it reads as an end that the value is not.

    Args:
        value: The value.
        text: What is said of it, rounded.
        ends: Numbers that it is compared with; None is none.

    Example:
        >>> told_apart(0.79996, "0.8", [0.8, None])
        '0.79996'
    """
    others = {end for end in ends if end is not None and end != value}
    if float(text.replace(",", "")) not in others:
        return text
    longer = (f"{value:.{digits}g}" for digits in range(3, 18))
    return next(more for more in longer if float(more) not in others)
