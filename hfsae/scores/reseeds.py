"""Runs that differ in nothing but their seed: only between them a score's noise of another training is seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfsae.autoencoder import SparseAutoencoder
from hfsae.autoencoder.registry import architecture_name
from hfsae.configuration import SAEConfig
from hfsae.scores.matching import one_start, starts_are_known


@dataclass(frozen=True)
class Reseeds:
    """Runs of one recipe.

    Attributes:
        name: The architecture; where recipes of one architecture differ, with what they differ in.
        runs: The names of SAEs that each have a start of their own.
        not_counted: Of further SAEs of this recipe, why they are no other seed.
    """

    name: str
    runs: list[str]
    not_counted: Mapping[str, str]


def reseeds(saes: Mapping[str, SparseAutoencoder]) -> list[Reseeds]:
    """Puts SAEs together that were trained alike but for the seed.

    Args:
        saes: By name.

    Returns:
        Each recipe with its runs, in the order in which the first of each was given.
    """
    of_recipe: dict[tuple[str, ...], list[str]] = {}
    for name, sae in saes.items():
        of_recipe.setdefault(_recipe(sae.config), []).append(name)
    names = _told_apart(list(of_recipe))
    found = []
    for name, members in zip(names, of_recipe.values(), strict=True):
        runs: list[str] = []
        not_counted: dict[str, str] = {}
        # One whose start is not known would keep all others from counting.
        for member in sorted(members, key=lambda member: not starts_are_known(saes[member])):
            objection = next((why for other in runs if (why := _no_other_seed(saes, member, other))), None)
            if objection is None:
                runs.append(member)
            else:
                not_counted[member] = objection
        found.append(Reseeds(name, runs, not_counted))
    return found


def _no_other_seed(saes: Mapping[str, SparseAutoencoder], member: str, other: str) -> str | None:
    if not starts_are_known(saes[member], saes[other]):
        return f"what it or {other} started from is not recorded"
    why = one_start(saes[member], saes[other])
    return None if why is None else f"beside {other}, {why}"


def _recipe(config: SAEConfig) -> tuple[str, ...]:
    """What a run was, but for its seed and its folders, in words that can stand in a table."""
    training: Mapping[str, Any] = config.training or {}
    arguments = training.get("arguments") or {}
    options = arguments.get("architecture_options") if isinstance(arguments, Mapping) else None
    target = training.get("target_l0")
    return (
        architecture_name(config),
        f"{config.source_places} {config.target_places}",
        Path(config.base_model).name if config.base_model else "",
        f"{config.n_features:,} features",
        f"k = {config.k}" if hasattr(config, "k") else "",
        f"L0 {target}" if target else "",
        f"{training['n_tokens']:,} tokens" if isinstance(training.get("n_tokens"), int) else "",
        str(training.get("dataset_digest") or training.get("dataset") or ""),
        str(options or ""),
    )


def _told_apart(recipes: Sequence[tuple[str, ...]]) -> list[str]:
    """A name for each recipe: the architecture, and the parts in which those of one architecture differ."""
    names = []
    for recipe in recipes:
        alike = [other for other in recipes if other[0] == recipe[0]]
        differing = [place for place in range(1, len(recipe)) if len({other[place] for other in alike}) > 1]
        told = [recipe[place] for place in differing if recipe[place]]
        names.append(", ".join([recipe[0], *told]))
    return names
