"""Places that one crosscoder reads together, joined by `+` in its hook point: their rows lie behind each other."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from hfsae.configuration import SAEConfig, join_places, places_in
from hfsae.hooks import portable_name, resolve_hook_point


def resolve_joined(model: nn.Module, name: str) -> str:
    """The canonical name of a place, or of places that are joined.

    Raises:
        HookPointError: If the model lacks one.
        ValueError: If one comes twice.
    """
    parts = [str(resolve_hook_point(model, part.strip())) for part in places_in(name)]
    if len(set(parts)) < len(parts):
        raise ValueError(f"hook_point={name!r} joins a place with itself: name each once.")
    return join_places(parts)


def portable_names(model: nn.Module, place: str) -> str | None:
    """The portable name of a place, or those of places that are joined; None where one has none."""
    names = [portable_name(model, part) for part in places_in(place)]
    return None if None in names else join_places(map(str, names))


def separate(places: Iterable[str | None]) -> list[str]:
    """Each place by itself and once, in the order of their first mention; None is none."""
    return list(dict.fromkeys(part for place in places if place is not None for part in places_in(place)))


def rows_at(rows: Mapping[str, Tensor], place: str) -> Tensor:
    """The rows (N, d) of a place, or of places that are joined."""
    parts = [rows[part] for part in places_in(place)]
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


def widths_at(widths: Mapping[str, int], place: str) -> list[int]:
    """The size of the activations at a place, or at each of those that are joined."""
    return [widths[part] for part in places_in(place)]


def refuse_other_sources(config: SAEConfig, place: str, widths: list[int], label: str) -> None:
    """Refuses an SAE of one source where several places are joined, and a crosscoder whose sources are others.

    Raises:
        ValueError: Names the SAE by its label.
    """
    parts, own = places_in(place), config.input_widths
    if len(parts) > 1 and len(own) == 1:
        raise ValueError(
            f"{label} reads one place, but {place} joins {len(parts)}: choose a crosscoder "
            "(architecture='crosscoder'), or part the places with commas for an SAE each."
        )
    if len(parts) == 1 and len(own) > 1 and sum(own) == sum(widths):
        return  # rows that were joined before they came
    if own != widths and len(own) > 1:
        raise ValueError(
            f"{label} has source_widths={own}, but the activations at {place} have {widths} dimensions: join the "
            "places of its sources with +, in their order."
        )
