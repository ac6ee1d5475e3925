"""Which SAEs of a sweep no other one beats: the Pareto front of sparsity against faithfulness."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hfsae.evaluation.metrics import names_by

# What is worth having at a given number of active features.
FRONT_METRICS = names_by("on_front")


def pareto_front(rows: Iterable[Mapping[str, Any]], metric: str) -> list[str]:
    """The names of the rows that no other row beats: none has as few active features and a better figure.

    Args:
        rows: Each with `name`, `l0` and the metric; rows without one of the figures are passed over.
        metric: Of which more is better: `"loss_recovered"` or `"explained_variance"`.

    Returns:
        Names in the order of L0.

    Example:
        >>> rows = [{"name": "a", "l0": 8, "loss_recovered": 0.90}, {"name": "b", "l0": 16, "loss_recovered": 0.89}]
        >>> pareto_front(rows, "loss_recovered")
        ['a']
    """
    known = [row for row in rows if row.get("l0") is not None and row.get(metric) is not None]
    front, best = [], float("-inf")
    for row in sorted(known, key=lambda row: (row["l0"], -row[metric])):
        if row[metric] > best:
            front.append(row["name"])
            best = row[metric]
    return front


def fronts(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """The front for each hook point and metric: figures at different places of a model are not comparable.

    Args:
        rows: As `pareto_front` takes them, with `hook_point`.
    """
    places = dict.fromkeys(row["hook_point"] for row in rows)
    return {
        place: {
            metric: pareto_front([row for row in rows if row["hook_point"] == place], metric)
            for metric in FRONT_METRICS
        }
        for place in places
    }
