"""Values of records and cards that may be of any kind, read as what they should be."""

import math
from collections.abc import Mapping
from typing import Any


def number(value: Any) -> float | None:
    """A plain float of what may be a NumPy or torch scalar; None for what is not one finite number."""
    if value is None or isinstance(value, str | bool):
        return None
    try:
        plain = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return plain if math.isfinite(plain) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping; empty for what is none."""
    return value if isinstance(value, Mapping) else {}


def string(value: Any) -> str | None:
    """A string; None for what is none."""
    return value if isinstance(value, str) else None
