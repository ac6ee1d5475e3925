"""Reading and replacing the activation at a hook point, in whatever form the module passes it.

`visiting` is the one way in: what `capture` and `splice` do are both visits.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hfsae.hooks.eager import uncompiled
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.passes import Passes
from hfsae.hooks.points import HookPoint, HookPointError

Visitor = Callable[[Tensor], Tensor | None]
"""Gets the activation, (batch, seq, d); returns what takes its place, or None to leave it as it is."""


@contextmanager
def visiting(
    model: nn.Module,
    layout: DecoderLayout | None,
    hook_point: HookPoint,
    visitor: Visitor,
    *,
    passes: Passes | None = None,
    time_major: bool = False,
    may_be_skipped: bool = False,
    every_visit: bool = False,
) -> Iterator[None]:
    """Call `visitor` when the model passes `hook_point`; leaving the context takes all hooks off.

    The visitor sees (batch, seq, d) also where the module works on flattened tokens, (batch * seq, d), as OPT's `fc1`
    and `fc2` do, or with the sequence first; of several streams it sees the one that is named. Visits at one place
    happen in the order in which their contexts were entered, and each sees what the one before put there. A forward
    pass of the model that does not pass the place once, or not the visit that it names, is an error.

    Args:
        model: The model that holds the module.
        layout: The model's layout, if it has one.
        hook_point: A resolved hook point of that model.
        visitor: What to do there. A replacement has the activation's shape, dtype and device.
        passes: The model's passes, if they are open already.
        time_major: Whether activations are (seq, batch, d).
        may_be_skipped: Whether a pass that never comes to the place is no error.
        every_visit: Whether the visitor is called each time where the place is passed several times.
    """
    module = model.get_submodule(hook_point.path)
    block = layout.block_around(hook_point.path) if layout is not None else None
    through = layout is not None and "resid_mid" in layout.roles(hook_point)
    with ExitStack() as hooks:
        if passes is None:
            recomputed = runs_again_in_backward(layout, hook_point)
            passes = hooks.enter_context(Passes(model, [hook_point.path], recomputed=recomputed).open())
        visit = _Visit(
            hook_point,
            visitor,
            passes,
            model_name=type(model).__name__,
            through=through,
            stream_axis=layout.stream_axis(hook_point) if layout is not None else None,
            time_major=time_major,
            may_be_skipped=may_be_skipped,
            every_visit=every_visit,
        )
        passes.tell(visit)
        if block is not None and block is not module:
            hooks.callback(block.register_forward_pre_hook(uncompiled(visit.on_block), with_kwargs=True).remove)
        if hook_point.side == "input":
            hooks.callback(module.register_forward_pre_hook(uncompiled(visit.on_input), with_kwargs=True).remove)
        else:
            hooks.callback(module.register_forward_hook(uncompiled(visit.on_output)).remove)
        yield


def runs_again_in_backward(layout: DecoderLayout | None, hook_point: HookPoint) -> bool:
    """Whether a place lies in what gradient checkpointing runs again.

    transformers' own blocks keep their hooks outside of the part that runs again; others may not.
    """
    block = layout.block_around(hook_point.path) if layout is not None else None
    if block is None:
        return False
    assert layout is not None
    at_its_border = layout.model.get_submodule(hook_point.path) is block
    keeps_hooks_outside = isinstance(block, GradientCheckpointingLayer) and type(block).__call__ is nn.Module.__call__
    return not (at_its_border and keeps_hooks_outside)


class _Visit:
    """The hooks of one visit: take the activation out of a call, show it to the visitor, put back what it returns.

    Args:
        hook_point: The place.
        visitor: What to do there.
        passes: The model's forward passes.
        model_name: For messages.
        through: Write a replacement through to the residual stream, not only to the module that reads it.
        stream_axis: Where the place names one of several streams, the axis on which it is chosen.
        time_major: Whether activations are (seq, batch, d).
        may_be_skipped: Whether a pass that never comes here is no error.
        every_visit: Whether each of several visits in a pass is meant.
    """

    def __init__(
        self,
        hook_point: HookPoint,
        visitor: Visitor,
        passes: Passes,
        *,
        model_name: str,
        through: bool,
        stream_axis: int | None,
        time_major: bool,
        may_be_skipped: bool,
        every_visit: bool,
    ):
        self._hook_point = hook_point
        self._visitor = visitor
        self._passes = passes
        self._model_name = model_name
        self._through = through
        self._stream_axis = stream_axis
        self._time_major = time_major
        self._may_be_skipped = may_be_skipped
        self._every_visit = every_visit
        self._leading_shape = torch.Size()
        self._visits = 0

    def begins(self) -> None:
        """A forward pass begins."""
        self._visits = 0

    def called(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A model in the pass is called: nothing to note."""

    def ends(self, output: Any) -> None:
        """A forward pass has ended, in which the place must have been passed."""
        if self._visits == 0 and not self._may_be_skipped:
            raise never_passed(self._model_name, [self._hook_point])
        if self._hook_point.visit is not None and self._visits <= self._hook_point.visit:
            raise HookPointError(
                f"{self._hook_point} was asked for, but {self._model_name} passed the place {self._visits} times in "
                f"this forward pass: visits go from 0 to {self._visits - 1}."
            )

    def on_block(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before the block around the module: note (batch, seq), which flattened tokens have lost."""
        if self._passes.act():
            self._leading_shape = self._activation(_input_value(block, args, kwargs)).shape[:-1]

    def on_input(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before the module."""
        if not self._is_meant():
            return None
        value = _input_value(module, args, kwargs)
        activation = self._activation(value)
        if self._through:
            # The block keeps this very tensor as its residual stream and hands it to a norm: a replacement handed to
            # the norm alone would leave the stream as it was. The visitor gets a copy, so that what autograd saves
            # of it is not written over.
            replacement = self._visit(activation.clone())
            if replacement is not None:
                activation.copy_(replacement)
            return None
        replacement = self._visit(activation)
        if replacement is None:
            return None
        value = _with_first(value, replacement)
        return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, _input_name(module, kwargs): value})

    def on_output(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """After the module."""
        if not self._is_meant():
            return None
        replacement = self._visit(self._activation(output))
        return None if replacement is None else _with_first(output, replacement)

    def _is_meant(self) -> bool:
        """Counts a visit of this thread's pass, and says whether something is to be done in it."""
        if not self._passes.act():
            return False
        wanted = self._hook_point.visit
        if not self._passes.inside:  # a part of the model was called by hand, or runs again in the backward pass
            if wanted is not None:
                raise HookPointError(
                    f"{self._hook_point} was passed outside of a forward pass of {self._model_name}, so its visits "
                    "cannot be counted: call the model itself, without gradient checkpointing."
                )
            return True
        self._visits += 1
        if self._every_visit:
            return True
        if wanted is None and self._visits > 1:
            raise several_visits(self._model_name, self._hook_point)
        return wanted is None or self._visits - 1 == wanted

    def _activation(self, value: Any) -> Tensor:
        activation = _first(value)
        if not isinstance(activation, Tensor):
            raise HookPointError(
                f"{self._hook_point} holds no activation: found {type(activation).__name__}, expected a Tensor"
            )
        return activation

    def _visit(self, activation: Tensor) -> Tensor | None:
        if self._stream_axis is not None:
            assert self._hook_point.stream is not None
            replacement = self._visitor(activation.select(self._stream_axis, self._hook_point.stream))
            if replacement is None:
                return None
            return activation.select_scatter(replacement, self._stream_axis, self._hook_point.stream)
        if self._time_major and activation.dim() > 2:
            replacement = self._visitor(activation.transpose(0, 1))
            return None if replacement is None else replacement.transpose(0, 1)
        flattened = activation.dim() == 2 and len(self._leading_shape) == 2
        if not flattened or activation.shape[0] != self._leading_shape.numel():
            return self._visitor(activation)
        replacement = self._visitor(activation.unflatten(0, self._leading_shape))
        return None if replacement is None else replacement.flatten(0, -2)


def never_passed(model_name: str, hook_points: Iterable[HookPoint]) -> HookPointError:
    """The error for places that a forward pass did not come to."""
    places = ", ".join(sorted(map(str, hook_points)))
    return HookPointError(
        f"{model_name} finished without passing {places}: nothing was read or changed there. The module was not "
        "called in this forward pass: a list of modules never is, nor an expert without tokens, nor a branch that "
        "this input does not use (cross-attention without images). Name a place that this input passes; and where the "
        "model was compiled by torch.compile, hand over what torch.compile returned"
    )


def several_visits(model_name: str, hook_point: HookPoint, visits: int | None = None) -> HookPointError:
    """The error for a place that a forward pass comes to more than once."""
    times = "more than once" if visits is None else f"{visits} times"
    last = "" if visits is None else f" (0 to {visits - 1})"
    return HookPointError(
        f"{model_name} passes {hook_point} {times} in one forward pass. Say which time is meant, counted from "
        f"0{last}: '{hook_point}@0' is the first"
    )


def _input_name(module: nn.Module, kwargs: dict[str, Any]) -> str:
    """The keyword under which a module was handed its activation: its forward's first parameter."""
    first_parameter = next(iter(inspect.signature(module.forward).parameters), "")
    for name in (first_parameter, "hidden_states"):
        if name in kwargs:
            return name
    raise HookPointError(
        f"{type(module).__name__} was called without its first argument, {first_parameter!r}; got {sorted(kwargs)}"
    )


def _input_value(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs[_input_name(module, kwargs)]


def _first(value: Any) -> Any:
    """What of a module's argument or result is the activation: it itself, or the first of a tuple, list or mapping."""
    if isinstance(value, Mapping):
        return next(iter(value.values()), None)
    if isinstance(value, tuple | list):
        return value[0] if value else None
    return value


def _with_first(value: Any, replacement: Tensor) -> Any:
    """`value` with its activation replaced, in the type it came in."""
    if isinstance(value, Tensor):
        return replacement
    if isinstance(value, Mapping):
        return type(value)(**{**value, next(iter(value)): replacement})
    items = (replacement, *value[1:])
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
