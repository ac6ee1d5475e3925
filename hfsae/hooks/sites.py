"""A model's places, found by name and looked at once, so that one forward pass after another may visit them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from hfsae.hooks.access import Site, passes_of
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.names import expand_hook_points
from hfsae.hooks.passes import Passes
from hfsae.hooks.points import HookPoint
from hfsae.hooks.probe import Seen, seen_at
from hfsae.hooks.side_by_side import SideBySide, below


@dataclass(frozen=True)
class Sites:
    """Some places of one model.

    To find them takes longer than to visit them, so what runs a model many times finds them once. A model that is
    rebuilt in between (an adapter is added) has other sites.

    Attributes:
        model: The model.
        hook_points: The place that each name means.
        optional: The places that only a wildcard names; a forward pass need not come to each of them.
        by_place: The site of each place.
        seen: What passes there; None for all where the model does not run on token ids alone.
    """

    model: nn.Module
    hook_points: dict[str, HookPoint]
    optional: frozenset[HookPoint]
    by_place: dict[HookPoint, Site]
    seen: dict[HookPoint, Seen | None]

    @classmethod
    def find(cls, model: nn.Module, hook_points: str | HookPoint | Sequence[str | HookPoint]) -> "Sites":
        """Finds places by name, and looks at them.

        Args:
            model: As for `resolve_hook_point`.
            hook_points: As for `resolve_hook_points`.

        Raises:
            HookPointError: If a place does not exist.
        """
        named = expand_hook_points(model, hook_points)
        return cls(model, named.places, named.optional, *_look(model, named.places.values(), named.layout))

    @classmethod
    def at(cls, model: nn.Module, places: Iterable[HookPoint]) -> "Sites":
        """The same for places that are resolved already."""
        by_name = {str(place): place for place in places}
        return cls(model, by_name, frozenset(), *_look(model, by_name.values(), DecoderLayout.find(model)))

    def __getitem__(self, place: HookPoint) -> Site:
        return self.by_place[place]

    def check(self) -> None:
        """Checks that tokens can be told in what passes at each place.

        Raises:
            HookPointError: If not, with what was seen.
        """
        for place, seen in self.seen.items():
            if seen is not None:
                seen.check(place)

    @contextmanager
    def passes(self, wrapper: nn.Module | None = None) -> Iterator[Passes]:
        """The model's forward passes, for the time of this context.

        Args:
            wrapper: What is around the model and may be called in its place.
        """
        with passes_of(self.model, self.by_place.values(), wrapper).open() as passes:
            yield passes


def _look(
    model: nn.Module, places: Iterable[HookPoint], layout: DecoderLayout | None
) -> tuple[dict[HookPoint, Site], dict[HookPoint, Seen | None]]:
    places = list(dict.fromkeys(places))
    if isinstance(model, SideBySide):
        return _look_in_each(model, places)
    seen = seen_at(model, places, layout)
    sites = {place: Site.find(model, layout, place) for place in places}
    turned = {place: replace(sites[place], time_major=True) for place, it in seen.items() if it and it.time_major}
    return sites | turned, seen


def _look_in_each(
    models: SideBySide, places: list[HookPoint]
) -> tuple[dict[HookPoint, Site], dict[HookPoint, Seen | None]]:
    """The same for places of models that stand side by side."""
    sites: dict[HookPoint, Site] = {}
    seen: dict[HookPoint, Seen | None] = {}
    for part, model in models.models.items():
        own = [models.own(place) for place in places if models.part_of(place) == part]
        its_sites, its_seen = _look(model, own, DecoderLayout.find(model))
        sites |= {below(part, at): replace(site, hook_point=below(part, at)) for at, site in its_sites.items()}
        seen |= {below(part, place): what for place, what in its_seen.items()}
    return {place: sites[place] for place in places}, {place: seen[place] for place in places}
