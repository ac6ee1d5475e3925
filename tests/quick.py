"""Which cases of a test run with the quick tests, where all would take too long."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], *, quick: Collection[Any]) -> list[Any]:
    """The cases for `pytest.mark.parametrize`, of which those in `quick` are not slow.

    Raises:
        ValueError: If a case that was to be quick is none of the cases.
    """
    cases = list(cases)
    if unknown := [case for case in quick if case not in cases]:
        raise ValueError(f"{unknown} are none of the cases {cases}")
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
