"""Reading activations: `capture`, and the `Capture` it gives."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hfsae.hooks.access import Visitor, visiting
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.names import expand_hook_points
from hfsae.hooks.points import HookPoint, HookPointError


class _Stopped(BaseException):  # Not an Exception: no `except Exception` in a model's code may swallow it.
    """Ends a forward pass right after the last hook point that a run needs; caught by that run."""

    def __init__(self, by: "Capture"):
        self.by = by


class Capture(Mapping[str, Tensor]):
    """The activations of the last forward pass, by name; made by `capture`.

    A key is a name as the caller gave it; the canonical name and the `HookPoint` work too. A name with a wildcard or
    a range gives one key a layer (`"resid_post.*"` gives `"resid_post.0"`, ...). A place that the model has not passed
    yet is not in the mapping. The tensors outlive the context.

    Attributes:
        hook_points: The place that each name means.
        output: What the model returned in the last `run`, or None if that run was stopped early.
    """

    def __init__(
        self,
        model: nn.Module,
        hook_points: dict[str, HookPoint],
        *,
        stop: bool,
        detach: bool,
        dtype: torch.dtype | None,
    ):
        self.hook_points = hook_points
        self.output: Any = None
        self._model = model
        self._stop = stop
        self._detach = detach
        self._dtype = dtype
        self._values: dict[HookPoint, Tensor] = {}
        self._awaited: set[HookPoint] = set()
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
            HookPointError: If the model finished without passing one of the places, or the context has been left.
        """
        if not self._open:
            raise HookPointError("this capture's context has been left, so its hooks are off; run inside the `with`")
        stopping = self._stop and not _is_offloaded(self._model)
        accepted = inspect.signature(self._model.forward).parameters
        if "use_cache" in accepted:
            inputs.setdefault("use_cache", False)
        if self._stop and not stopping and "logits_to_keep" in accepted and "labels" not in inputs:
            inputs.setdefault("logits_to_keep", 1)  # Nobody sees these logits.

        self.output = None
        self._values.clear()
        self._awaited = set(self.hook_points.values())
        self._running = stopping
        try:
            with torch.no_grad() if self._stop and self._detach else nullcontext():
                output = self._model(**inputs)
            self.output = None if self._stop else output
        except _Stopped as stopped:
            if stopped.by is not self:
                raise
        finally:
            self._running = False
        if self._awaited:
            missed = ", ".join(sorted(str(point) for point in self._awaited))
            raise HookPointError(
                f"{type(self._model).__name__} finished without passing {missed}: the module was not called in this "
                f"forward pass (a container or an unused branch is never called; a compiled model ignores hooks)"
            )
        return self

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

    @contextmanager
    def _installed(self) -> Iterator[None]:
        layout = DecoderLayout.find(self._model)
        with ExitStack() as visits:
            for point in dict.fromkeys(self.hook_points.values()):
                visits.enter_context(visiting(self._model, layout, point, self._reader(point)))
            self._open = True
            try:
                yield
            finally:
                self._open = False

    def _reader(self, point: HookPoint) -> Visitor:
        def read(activation: Tensor) -> Tensor | None:
            self._awaited.discard(point)
            stops_here = self._running and not self._awaited
            dtype = self._dtype or activation.dtype
            if self._detach:
                # A copy, because some models go on to write into their modules' outputs (Falcon adds the attention's
                # to the MLP's). Where the model stops here nothing will.
                self._values[point] = activation.detach().to(dtype, copy=not stops_here)
                replacement = None
            else:
                # What is kept is a station on the way to the logits, passed by nothing but what goes through this
                # place, so that gradients with respect to it exist and are those of the place.
                value = self._values[point] = activation.to(dtype, copy=True)
                if torch.is_grad_enabled() and value.is_floating_point() and not value.requires_grad:
                    value.requires_grad_()
                replacement = value.to(activation.dtype, copy=True)
            if stops_here:
                raise _Stopped(self)
            return replacement

        return read


@contextmanager
def capture(
    model: nn.Module,
    hook_points: str | HookPoint | Sequence[str | HookPoint],
    *,
    stop: bool = True,
    detach: bool = True,
    dtype: torch.dtype | None = None,
) -> Iterator[Capture]:
    """Read activations from a model while it runs.

    `Capture.run` runs the model for the activations' sake and stops it early. A plain call, `model(**inputs)` or
    `model.generate(**inputs)`, inside the context fills the capture as well (with the last forward pass, where there
    are several); it was asked for an output, so it always runs to the end, whatever `stop` says.

    Contexts nest. Inside a `splice` a capture sees what was spliced in; a splice entered inside a capture comes after
    it, at the same place, so the capture sees the original there.

    Args:
        model: A Hugging Face causal LM, its base model, or a multimodal model around one.
        hook_points: One name or several, as `resolve_hook_points` takes them.
        stop: Let `Capture.run` end the forward pass right after the last of the hook points.
        detach: Give tensors that are cut from the graph. Otherwise they are part of it: with grad enabled, gradients
            of whatever the model computes with respect to them exist, also where the model's parameters are frozen.
        dtype: Cast the activations to this; default: as the model computes them.

    Yields:
        The capture, a mapping from name to activation, (batch, seq, d). A module that is handed an unequal share of
        the tokens (an expert) gives (tokens, d).

    Raises:
        HookPointError: If a place does not exist; before anything runs.

    Example:
        >>> with capture(model, ["resid_post.4", "mlp_out.*"]) as activations:
        ...     activations.run(input_ids=input_ids)
        >>> activations["resid_post.4"].shape
        torch.Size([8, 128, 768])
    """
    result = Capture(model, expand_hook_points(model, hook_points), stop=stop, detach=detach, dtype=dtype)
    with result._installed():
        yield result


def _is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate moves weights in and out around forward calls, which an early stop would leave half done."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    parts = (part for hook in hooks if hook is not None for part in getattr(hook, "hooks", (hook,)))
    # A hook of another kind than accelerate's device alignment is given the benefit of the doubt: it may need its end.
    return any(getattr(part, "offload", True) for part in parts)
