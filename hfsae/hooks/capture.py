"""Reading activations: `capture`, and the `Capture` it gives."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hfsae.hooks.access import Visitor, never_passed, visiting
from hfsae.hooks.passes import Listener, Passes, forget_passes
from hfsae.hooks.points import HookPoint, HookPointError
from hfsae.hooks.sequences import carries
from hfsae.hooks.side_by_side import PartStopped, SideBySide
from hfsae.hooks.sites import Sites


class _Stopped(BaseException):  # Not an Exception: no `except Exception` in a model's code may swallow it.
    """Ends a forward pass right after the last hook point that a run needs; caught by that run."""

    def __init__(self, by: "Capture"):
        self.by = by


class Capture(Mapping[str, Tensor], Listener):
    """The activations of the last forward pass, by name; made by `capture`.

    A key is a name as the caller gave it; the canonical name and the `HookPoint` work too. A name with a wildcard or
    a range gives one key a layer (`"resid_post.*"` gives `"resid_post.0"`, ...). A place that the model has not passed
    yet is not in the mapping. The tensors outlive the context.

    Attributes:
        hook_points: The place that each name means.
        output: What the model returned in the last `run`, or None if that run was stopped early.
    """

    def __init__(self, sites: Sites, *, stop: bool, detach: bool, dtype: torch.dtype | None):
        self.hook_points = sites.hook_points
        self.output: Any = None
        self._model = sites.model
        self._sites = sites
        self._stop = stop
        self._detach = detach
        self._dtype = dtype
        self._values: dict[HookPoint, Tensor] = {}
        self._awaited: set[HookPoint] = set()
        self._passed: set[HookPoint] = set()
        self._told_of: set[HookPoint] = set()
        self._running = False
        self._open = False

    def run(self, **inputs: Any) -> "Capture":
        """Run the model and read every hook point.

        With `stop`, the model runs no further than the last place needed: no later layers, no LM head. Where
        accelerate offloads the model's weights, which only a finished forward pass puts back, it runs to the end. With
        `stop` and `detach` nothing that could be differentiated comes out, so no graph is recorded. No key-value
        cache is kept unless `use_cache=True` is asked for.

        Args:
            **inputs: What the model takes: `input_ids`, `attention_mask`, ...

        Returns:
            This capture, filled.

        Raises:
            HookPointError: If the model finished without passing one of the places (those of a wildcard: any of them),
                or the context has been left.
            ValueError: If `position_ids` have a gap, and neither `attention_mask` nor a cache comes with them.
        """
        if not self._open:
            raise HookPointError("this capture's context has been left, so its hooks are off; run inside the `with`")
        places = set(self.hook_points.values())
        stopping = self._stop and not _is_offloaded(self._model) and places <= _passed_once(self._model)
        accepted = inspect.signature(self._model.forward).parameters
        if "use_cache" in accepted and "use_cache" not in inputs:
            _refuse_gaps(inputs)
            inputs["use_cache"] = False
        if self._stop and not stopping and "logits_to_keep" in accepted and "labels" not in inputs:
            inputs.setdefault("logits_to_keep", 1)  # Nobody sees these logits.

        self.output = None
        self._values.clear()
        self._awaited = places
        self._running = stopping
        try:
            with torch.no_grad() if self._stop and self._detach else nullcontext():
                output = self._model(**inputs)
            self.output = None if self._stop else output
        except _Stopped as stopped:
            if stopped.by is not self:
                raise
            forget_passes()
        finally:
            self._running = False
        return self

    def begins(self) -> None:
        self._passed.clear()

    def ends(self, output: Any) -> None:
        """A whole forward pass has ended: what it did not come to is not in the capture."""
        places = set(self.hook_points.values())
        _passed_once(self._model).update(self._passed)
        skipped = places - self._passed
        for point in skipped:
            self._values.pop(point, None)
        if skipped and not self._passed:
            raise never_passed(type(self._model).__name__, skipped)
        if fresh := skipped - self._told_of:
            self._told_of |= fresh
            warnings.warn(
                f"{type(self._model).__name__} did not pass {', '.join(sorted(map(str, fresh)))} in this forward "
                "pass: the capture holds the other places of the wildcard.",
                stacklevel=2,
            )

    def __getitem__(self, name: str | HookPoint) -> Tensor:
        by_canonical_name = {str(point): point for point in self.hook_points.values()}
        point = self.hook_points.get(str(name)) or by_canonical_name.get(str(name))
        if point is None:
            raise KeyError(f"{str(name)!r} is not captured; captured are: {', '.join(self.hook_points)}")
        if point not in self._values:
            raise KeyError(f"nothing captured at {str(name)!r} yet: run the model inside the context first")
        return self._values[point]

    def __iter__(self) -> Iterator[str]:
        return (name for name, point in self.hook_points.items() if point in self._values)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        seen = [f"{name}: {tuple(self[name].shape)}" if name in self else f"{name}: –" for name in self.hook_points]
        return f"Capture({', '.join(seen)})"

    @contextmanager
    def _installed(self) -> Iterator[None]:
        for place, seen in self._sites.seen.items():
            if seen is not None and seen.visits:
                seen.check_visit(place)
                _passed_once(self._model).add(place)
        with ExitStack() as visits:
            passes = visits.enter_context(self._sites.passes())
            for place, site in self._sites.by_place.items():
                skippable = place in self._sites.optional
                visits.enter_context(visiting(site, self._reader(place, passes), passes, may_be_skipped=skippable))
            passes.tell(self)
            self._open = True
            try:
                yield
            finally:
                self._open = False

    def _reader(self, point: HookPoint, passes: Passes) -> Visitor:
        def read(activation: Tensor) -> Tensor | None:
            self._awaited.discard(point)
            self._passed.add(point)
            stops_here = self._running and not self._awaits_more_of(point)
            dtype = self._dtype or activation.dtype
            if self._detach:
                # A copy, because some models go on to write into their modules' outputs (Falcon adds the attention's
                # to the MLP's). Where the model stops here nothing will.
                self._values[point] = activation.detach().to(dtype, copy=not stops_here)
                replacement = None
            else:
                if passes.loses_gradients:
                    raise HookPointError(
                        f"what passes at {point} has no gradients here, because reentrant gradient checkpointing only "
                        "makes them in the backward pass: pass gradient_checkpointing_kwargs={'use_reentrant': "
                        "False}, or capture with detach=True."
                    )
                # What is kept is a station on the way to the logits, passed by nothing but what goes through this
                # place, so that gradients with respect to it exist and are those of the place.
                value = self._values[point] = activation.to(dtype, copy=True)
                if torch.is_grad_enabled() and value.is_floating_point() and not value.requires_grad:
                    value.requires_grad_()
                replacement = value.to(activation.dtype, copy=True)
            if stops_here:
                raise PartStopped if self._awaited else _Stopped(self)
            return replacement

        return read

    def _awaits_more_of(self, point: HookPoint) -> bool:
        """Whether the run needs more of the model that has just passed a place, of several the one of that place."""
        if not isinstance(self._model, SideBySide):
            return bool(self._awaited)
        part = self._model.part_of(point)
        return any(self._model.part_of(awaited) == part for awaited in self._awaited)


@contextmanager
def capture(
    model: nn.Module,
    hook_points: str | HookPoint | Sequence[str | HookPoint] | Sites,
    *,
    stop: bool = True,
    detach: bool = True,
    dtype: torch.dtype | None = None,
) -> Iterator[Capture]:
    """Read activations from a model while it runs.

    `Capture.run` runs the model for the activations' sake and stops it early. A plain call, `model(**inputs)` or
    `model.generate(**inputs)`, inside the context fills the capture as well (with the last forward pass, where there
    are several). It was asked for an output, so it always runs to the end, even with `stop`.

    Contexts nest. Inside a `splice` a capture sees what was spliced in. A splice entered inside a capture comes after
    it, at the same place, so the capture sees the original there.

    Args:
        model: A Hugging Face causal LM, its base model, or a multimodal model around one.
        hook_points: One name or several, as `resolve_hook_points` takes them; or the `Sites` that they are, which
            whoever captures many times finds once.
        stop: Let `Capture.run` end the forward pass right after the last of the hook points.
        detach: Give tensors that are cut from the graph. Otherwise they are part of it. With grad enabled, gradients
            of all later states with respect to them exist, also where the model's parameters are frozen.
        dtype: Cast the activations to this; default: as the model computes them.

    Yields:
        The capture, a mapping from name to activation, (batch, seq, d). A module that is handed an unequal share of
        the tokens (an expert) gives (tokens, d).

    Raises:
        HookPointError: If a place does not exist, or is passed several times and the name does not say which time is
            meant (`"...output@0"`); before anything runs. At the end of a forward pass that never came to a place. A
            wildcard leaves such places out and warns, unless there is no other.

    Example:
        >>> with capture(model, ["resid_post.4", "mlp_out.*"]) as activations:
        ...     activations.run(input_ids=input_ids)
        >>> activations["resid_post.4"].shape
        torch.Size([8, 128, 768])
    """
    sites = hook_points if isinstance(hook_points, Sites) else Sites.find(model, hook_points)
    result = Capture(sites, stop=stop, detach=detach, dtype=dtype)
    with result._installed():
        yield result


_passed_places: WeakKeyDictionary[nn.Module, set[HookPoint]] = WeakKeyDictionary()


def _passed_once(model: nn.Module) -> set[HookPoint]:
    """The places that a whole forward pass came to once, so that a run may stop there: nothing comes after."""
    return _passed_places.setdefault(model, set())


def _is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate moves weights in and out around forward calls, which an early stop would leave half done."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    parts = (part for hook in hooks if hook is not None for part in getattr(hook, "hooks", (hook,)))
    # A hook of another kind than accelerate's device alignment is given the benefit of the doubt: it may need its end.
    return any(getattr(part, "offload", True) for part in parts)


def _refuse_gaps(inputs: Mapping[str, Any]) -> None:
    """Without a mask and a cache, transformers takes a gap in the positions for the start of another text.

    A plain call with a cache reads one text there (5.23.0 and 5.24.0: findings/transformers_gaps_in_position_ids.sh).
    """
    position_ids, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if mask is not None or not isinstance(position_ids, Tensor) or position_ids.dim() != 2:
        return
    if any(carries(name, value) for name, value in inputs.items()):
        return
    gaps = (position_ids.diff(dim=1) > 1).nonzero()
    if len(gaps):
        row, place = gaps[0].tolist()
        before, after = position_ids[row, place : place + 2].tolist()
        raise ValueError(
            f"position_ids go from {before} to {after} and no attention_mask is given: transformers would hide from "
            "the tokens after the gap all that stands before it. Pass attention_mask=torch.ones_like(input_ids). "
            "Packed texts each start at 0."
        )
