"""The spliced_models of an evaluation: of its language model, or of each of several that stand side by side."""

from collections.abc import Iterable, Mapping

from torch import Tensor
from transformers import PreTrainedModel

from hfsae.evaluation.spliced_model import SplicedModel
from hfsae.hooks import HookPoint, SideBySide
from hfsae.hooks.side_by_side import below

# What the only model is called where there are not several.
_ALONE = ""


class SplicedModels:
    """One `SplicedModel` a language model, by name; a place belongs to one of them.

    Args:
        model: A language model, or a `SideBySide`.
        reads: As for `SplicedModel`, like the others.
        writes: The places that are written to.
        inputs: A first batch.

    Attributes:
        of: The spliced_models by the names of their models.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reads: Iterable[HookPoint],
        writes: Iterable[HookPoint],
        inputs: Mapping[str, Tensor],
    ):
        self._models = model if isinstance(model, SideBySide) else None
        reads, writes = list(reads), list(writes)
        models = {_ALONE: model} if self._models is None else self._models.models
        self.of = {
            name: SplicedModel(one, self._of(name, reads), self._of(name, writes), inputs)
            for name, one in models.items()
        }

    def _of(self, model: str, places: list[HookPoint]) -> list[HookPoint]:
        """Those of the places that are one model's, as it calls them."""
        return [self._own(place) for place in places if self.model_of(place) == model]

    def _own(self, place: HookPoint) -> HookPoint:
        return place if self._models is None else self._models.own(place)

    def model_of(self, place: HookPoint) -> str:
        """The name of the model whose place it is."""
        return _ALONE if self._models is None else self._models.part_of(place)

    def read(self, inputs: Mapping[str, Tensor]) -> tuple[dict[HookPoint, Tensor], dict[str, Tensor]]:
        """The untouched models' activations at all places, and the final state of each by its name."""
        activations: dict[HookPoint, Tensor] = {}
        finals: dict[str, Tensor] = {}
        for name, spliced in self.of.items():
            own, finals[name] = spliced.read(inputs)
            activations |= {below(name, place) if self._models is not None else place: it for place, it in own.items()}
        return activations, finals

    def write(self, inputs: Mapping[str, Tensor], place: HookPoint, activation: Tensor) -> Tensor:
        """The final state of a place's own model, with `activation` (batch, seq, d) there."""
        return self.of[self.model_of(place)].write(inputs, self._own(place), activation)

    def sequences_at_once(self, length: int, runs: int) -> int | None:
        """As of a `SplicedModel`: as many as all models can take."""
        numbers = [spliced.sequences_at_once(length, runs) for spliced in self.of.values()]
        return min((number for number in numbers if number is not None), default=None)
