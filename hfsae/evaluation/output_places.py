"""What is measured of an SAE: its only reconstruction, of a crosscoder that of each source, of layers that of each.

Of a crosscoder every source has figures of its own. It is read at all places, and one source's reconstruction is put
into its place while the others keep their own activations. Its own figures are the means over its sources. A
cross-layer transcoder is read at all layers likewise, and what it makes of one is put there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.autoencoder.outputs import SAEOutput
from hfsae.evaluation.measure import Measurement
from hfsae.hooks import HookPoint
from hfsae.in_model import hook_points_of, hook_points_of_layers, hook_points_of_sources


@dataclass(frozen=True)
class OutputPlace:
    """One reconstruction.

    Args:
        source: The crosscoder's source, or the layer, that it is of; None for an ordinary SAE.
        reads: Where everything is read that is encoded.
        target: Where it is put.
        width: Its size.
    """

    source: str | None
    reads: tuple[HookPoint, ...]
    target: HookPoint
    width: int

    def measurement(self, sae: SparseAutoencoder, reconstruct: Callable[[Tensor], SAEOutput]) -> Measurement:
        """What is measured of this side, where `reconstruct` stands for the SAE."""
        return Measurement(self.alone(sae, reconstruct), self.reads, self.target, device=sae.device)

    def alone(self, sae: Any, reconstruct: Callable[[Tensor], SAEOutput]) -> Callable[[Tensor], SAEOutput]:
        """What gives this side alone of all that an SAE reconstructs."""
        if self.source is None:
            return reconstruct
        source = self.source

        def one_side(activations: Tensor) -> SAEOutput:
            output = reconstruct(activations)
            return SAEOutput(reconstruction=sae.split(output.reconstruction)[source], features=output.features)

        return one_side


def output_places(sae: SparseAutoencoder, model: PreTrainedModel) -> list[OutputPlace]:
    """The sides of an SAE in a language model; one, but for crosscoders.

    Raises:
        HookPointError: If the model has no such place.
        ValueError: If activations there have another size.
    """
    if not sae.config.has_sides:
        read, target = hook_points_of(sae.config, model)
        return [OutputPlace(None, (read,), target, sae.config.d_out)]
    config: Any = sae.config
    if sae.config.is_cross_layer:
        pairs = hook_points_of_layers(sae.config, model)
        layers = zip(config.source_names, pairs, config.output_widths, strict=True)
        return [
            OutputPlace(name, tuple(read for read, _ in pairs), target, width) for name, (_, target), width in layers
        ]
    places = tuple(hook_points_of_sources(sae.config, model))
    named = zip(config.source_names, places, config.source_widths, strict=True)
    return [OutputPlace(name, places, place, width) for name, place, width in named]


def widths_of(sides: Mapping[str, Sequence[OutputPlace]]) -> dict[HookPoint, int]:
    """The size of the activations at every place that an SAE of several writes to."""
    return {side.target: side.width for of_sae in sides.values() for side in of_sae}


def with_means(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A crosscoder's figures: the mean of each number over its sources, what is no number once, and those of each.

    The notes say of which sources they are, where they are not of all.
    """
    first = next(iter(figures.values()))
    together = {name: _together([of[name] for of in figures.values()]) for name in first}
    sources = {source: _numbers(of) for source, of in figures.items()}
    return {**together, "notes": _notes({source: of["notes"] for source, of in figures.items()}), "sources": sources}


def _together(values: Sequence[Any]) -> Any:
    if all(isinstance(value, float) for value in values):
        return fmean(values)
    return None if None in values else values[0]


def _notes(of_each: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The notes of all sources by the names of the metrics."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for source, notes in of_each.items():
        for metric, reason in notes.items():
            reasons.setdefault(metric, {}).setdefault(reason, []).append(source)
    return {
        metric: next(iter(by_reason))
        if list(map(len, by_reason.values())) == [len(of_each)]
        else "; ".join(f"{', '.join(sources)}: {reason}" for reason, sources in by_reason.items())
        for metric, by_reason in reasons.items()
    }


def _numbers(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if isinstance(value, float | None)}
