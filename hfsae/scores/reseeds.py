"""Runs that differ in nothing but their seed: only between them a score's noise of another training is seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hfsae.autoencoder import SparseAutoencoder
from hfsae.scores.matching import one_start, starts_are_known
from hfsae.scores.recipe import recipe


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
    recipes: list[dict[str, str]] = []
    of_recipe: list[list[str]] = []
    for name, sae in saes.items():
        own = recipe(sae.config)
        if own not in recipes:
            recipes.append(own)
            of_recipe.append([])
        of_recipe[recipes.index(own)].append(name)
    found = []
    for name, members in zip(_told_apart(recipes), of_recipe, strict=True):
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


def _told_apart(recipes: Sequence[Mapping[str, str]]) -> list[str]:
    """A name for each recipe: the architecture, and the parts in which those of one architecture differ."""
    names = []
    for one in recipes:
        alike = [other for other in recipes if other["architecture"] == one["architecture"]]
        told = [part for name, part in one.items() if len({other.get(name) for other in alike}) > 1]
        names.append(", ".join([one["architecture"], *told]))
    return names
