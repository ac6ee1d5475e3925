"""What really passes at a place, found by running a model on two and on three tokens before anything is believed.

A place is where a name says it is, but what passes there is the model's affair. There are streams with more axes than
three, the sequence before the batch, virtual tokens, modules that run several times or never. An SAE's rows are
tokens. So a place that is not (batch, sequence, d), once a forward pass, has to be known before it is read or
replaced.
"""

import inspect
import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hfsae.hooks.access import Site, never_passed, passes_of, several_visits, visiting
from hfsae.hooks.devices import input_device
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.points import HookPoint, HookPointError
from hfsae.hooks.quiet import on_the_side

logger = logging.getLogger(__name__)

_BATCH = 2
_LENGTHS = (2, 3)


@dataclass(frozen=True)
class Seen:
    """What passed at a place when the model ran on two sequences of two tokens, then of three.

    Attributes:
        model_name: The model's class.
        shapes: The shape of every visit, for either length.
        unlike_neighbour: What a place at a block's border is not equal to, though it is named as if it were.
        rows: How many rows of ids the model was given: more than two where several codebooks make one sequence.
    """

    model_name: str
    shapes: tuple[tuple[torch.Size, ...], tuple[torch.Size, ...]]
    unlike_neighbour: HookPoint | None = None
    rows: int = _BATCH

    @property
    def visits(self) -> int:
        """How often a forward pass comes to the place."""
        return max(map(len, self.shapes))

    @property
    def time_major(self) -> bool:
        """Whether activations are (seq, batch, d)."""
        return bool(self.visits) and all(
            len(shape) == 3 and shape[1] == self.rows and shape[0] >= length and shape[0] - length == self._extra(0)
            for length, shapes in zip(_LENGTHS, self.shapes, strict=True)
            for shape in shapes
        )

    def check(self, hook_point: HookPoint) -> None:
        """Checks that tokens can be told in what passes.

        Raises:
            HookPointError: If not, with what was seen.
        """
        self.check_visit(hook_point)
        if not self.time_major and not self._is_batch_major():
            seen = " and ".join(
                f"{tuple(shapes[-1])} for {self.rows} rows of {length}" if shapes else f"nothing for {length}"
                for length, shapes in zip(_LENGTHS, self.shapes, strict=True)
            )
            raise HookPointError(
                f"what {self.model_name} passes at {hook_point} cannot be matched with tokens: its shape was {seen} "
                f"tokens, where ({self.rows}, {_LENGTHS[0]}, d) and ({self.rows}, {_LENGTHS[1]}, d) were expected. "
                f"Choose another place{self._which_stream(hook_point)}.{self._of_codebooks()}"
            )
        if self.unlike_neighbour is not None:
            raise HookPointError(
                f"{hook_point} is not what {self.model_name} passes at {self.unlike_neighbour}, so these blocks hand "
                "on more than one residual stream. Name a place inside a block instead."
            )

    def check_visit(self, hook_point: HookPoint) -> None:
        """Checks that a name says which visit is meant, if there are several.

        Raises:
            HookPointError: If it does not, or names one that there is not.
        """
        if not self.visits:
            raise never_passed(self.model_name, [hook_point])
        if hook_point.visit is None and self.visits > 1:
            raise several_visits(self.model_name, hook_point, self.visits)
        if hook_point.visit is not None and hook_point.visit >= self.visits:
            raise HookPointError(
                f"{hook_point}: {self.model_name} passes this place {self.visits} times in a forward pass, so visits "
                f"go from 0 to {self.visits - 1}."
            )

    def _which_stream(self, hook_point: HookPoint) -> str:
        several = hook_point.stream is None and any(len(shape) == 4 for shapes in self.shapes for shape in shapes)
        return f", or one of several streams, such as '{replace(hook_point, stream=0)}'" if several else ""

    def _of_codebooks(self) -> str:
        if self.rows == _BATCH:
            return ""
        return (
            f" This model makes one sequence of {self.rows // _BATCH} rows of ids, so nothing that it computes "
            "belongs to one token; hfsae.hooks.capture reads it all the same."
        )

    def _is_batch_major(self) -> bool:
        return all(
            len(shape) == 3 and shape[0] == self.rows and shape[1] >= length and shape[1] - length == self._extra(1)
            for length, shapes in zip(_LENGTHS, self.shapes, strict=True)
            for shape in shapes
        )

    def _extra(self, axis: int) -> int:
        """How many rows there are beside the tokens' own, as with prompt tuning's virtual tokens."""
        return self.shapes[0][0][axis] - _LENGTHS[0] if self.shapes[0] else -1


_seen: WeakKeyDictionary[nn.Module, dict[HookPoint, Seen | None]] = WeakKeyDictionary()


def seen_at(
    model: nn.Module, hook_points: Iterable[HookPoint], layout: DecoderLayout | None
) -> dict[HookPoint, Seen | None]:
    """What passes at some places of a model, found once for each of them.

    Args:
        model: A model that takes token ids, or a wrapper around one.
        hook_points: Resolved places; which visit they name does not matter.
        layout: The model's layout, if it has one.

    Returns:
        What was seen, by place; None for all where the model does not run on token ids alone.
    """
    asked = {point: replace(point, visit=None) for point in hook_points}
    known = _seen.setdefault(model, {})
    missing = [place for place in dict.fromkeys(asked.values()) if place not in known]
    fresh = _look(model, missing, layout) if missing else {}
    # What is unlike its neighbour may be so because of a hook of the user's, which may go.
    known.update({place: seen for place, seen in fresh.items() if seen is None or seen.unlike_neighbour is None})
    return {point: known[place] if place in known else fresh[place] for point, place in asked.items()}


def _look(model: nn.Module, places: list[HookPoint], layout: DecoderLayout | None) -> dict[HookPoint, Seen | None]:
    neighbours = {place: neighbour for place in places if (neighbour := _neighbour(layout, place)) is not None}
    watched = list(dict.fromkeys([*places, *neighbours.values()]))
    try:
        runs = [_run(model, watched, layout, length) for length in _LENGTHS]
    except Exception as error:  # whatever a model of any kind raises when it gets token ids and nothing else
        logger.debug("%s does not run on token ids alone: %s", type(model).__name__, error)
        return dict.fromkeys(places)
    shapes = {place: tuple(tuple(x.shape for x in run[place]) for run in runs) for place in places}
    last = runs[-1]
    unlike = {
        place: neighbour
        for place, neighbour in neighbours.items()
        if len(last[place]) == len(last[neighbour]) == 1 and not _equal(last[place][0], last[neighbour][0])
    }
    name = type(model).__name__
    rows = _rows(model.config)
    return {place: Seen(name, shapes[place], unlike.get(place), rows) for place in places}  # type: ignore[arg-type]


def _rows(config: Any) -> int:
    """Rows of ids for two sequences; MusicGen takes one for each codebook."""
    return _BATCH * getattr(config.get_text_config(), "num_codebooks", 1)


def _run(
    model: nn.Module, places: list[HookPoint], layout: DecoderLayout | None, length: int
) -> dict[HookPoint, list[Tensor]]:
    """What passes at each place, visit by visit, for two sequences."""
    config: Any = model.config
    vocabulary = config.get_text_config().vocab_size
    rows = _rows(config)
    ids = (3 + torch.arange(rows * length)).remainder(vocabulary).view(rows, length).to(input_device(model))
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids[:_BATCH]), "use_cache": False}
    accepted = inspect.signature(model.forward).parameters
    if "decoder_input_ids" in accepted:  # T5 does not make them of its own
        inputs["decoder_input_ids"] = ids
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        inputs = {name: value for name, value in inputs.items() if name in accepted}
    found: dict[HookPoint, list[Tensor]] = {place: [] for place in places}
    with on_the_side(model), ExitStack() as hooks:
        sites = [Site.find(model, layout, place) for place in places]
        passes = hooks.enter_context(passes_of(model, sites).open())
        for site in sites:
            keep = partial(_append_copy, found[site.hook_point])
            hooks.enter_context(visiting(site, keep, passes, may_be_skipped=True, every_visit=True))
        model(**inputs)
    return found


def _append_copy(seen: list[Tensor], activation: Tensor) -> None:
    seen.append(activation.clone())


def _neighbour(layout: DecoderLayout | None, place: HookPoint) -> HookPoint | None:
    """The other side of the border between two blocks, for a place that is one side of it."""
    layer = layout.layer_of(place.path) if layout is not None else None
    if layout is None or layer is None or place.path != layout.block_path(layer):
        return None
    other = layer - 1 if place.side == "input" else layer + 1
    if not 0 <= other < len(layout.blocks):
        return None
    return HookPoint(layout.block_path(other), "output" if place.side == "input" else "input", stream=place.stream)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other.to(one.device), rtol=1e-4, atol=1e-5, equal_nan=True)
