"""Reading and replacing the activation at a hook point, in whatever form the module passes it.

`visiting` is the one way in: what `capture` and `splice` do are both visits.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.points import HookPoint, HookPointError

Visitor = Callable[[Tensor], Tensor | None]
"""Gets the activation, (batch, seq, d); returns what takes its place, or None to leave it as it is."""


@contextmanager
def visiting(
    model: nn.Module, layout: DecoderLayout | None, hook_point: HookPoint, visitor: Visitor
) -> Iterator[None]:
    """Call `visitor` each time the model passes `hook_point`; leaving the context takes all hooks off.

    The visitor sees (batch, seq, d) also where the module works on flattened tokens, (batch * seq, d), as OPT's `fc1`
    and `fc2` do. Visits at one place happen in the order in which their contexts were entered, and each sees what
    the one before put there.

    Args:
        model: The model that holds the module.
        layout: The model's layout, if it has one.
        hook_point: A resolved hook point of that model.
        visitor: What to do there. A replacement has the activation's shape, dtype and device.
    """
    module = model.get_submodule(hook_point.path)
    block = layout.block_around(hook_point.path) if layout is not None else None
    visit = _Visit(hook_point, visitor, through=layout is not None and "resid_mid" in layout.roles(hook_point))
    with ExitStack() as hooks:
        if block is not None and block is not module:
            hooks.callback(block.register_forward_pre_hook(visit.on_block, with_kwargs=True).remove)
        if hook_point.side == "input":
            hooks.callback(module.register_forward_pre_hook(visit.on_input, with_kwargs=True).remove)
        else:
            hooks.callback(module.register_forward_hook(visit.on_output).remove)
        yield


class _Visit:
    """The hooks of one visit: take the activation out of a call, show it to the visitor, put back what it returns.

    Args:
        hook_point: The place, for messages.
        visitor: What to do there.
        through: Write a replacement through to the residual stream, not only to the module that reads it.
    """

    def __init__(self, hook_point: HookPoint, visitor: Visitor, *, through: bool):
        self._hook_point = hook_point
        self._visitor = visitor
        self._through = through
        self._leading_shape = torch.Size()

    def on_block(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before the block around the module: note (batch, seq), which flattened tokens have lost."""
        self._leading_shape = self._activation(_input_value(block, args, kwargs)).shape[:-1]

    def on_input(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """Before the module."""
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
        replacement = self._visit(self._activation(output))
        return None if replacement is None else _with_first(output, replacement)

    def _activation(self, value: Any) -> Tensor:
        activation = _first(value)
        if not isinstance(activation, Tensor):
            raise HookPointError(
                f"{self._hook_point} holds no activation: found {type(activation).__name__}, expected a Tensor"
            )
        return activation

    def _visit(self, activation: Tensor) -> Tensor | None:
        flattened = activation.dim() == 2 and len(self._leading_shape) == 2
        if not flattened or activation.shape[0] != self._leading_shape.numel():
            return self._visitor(activation)
        replacement = self._visitor(activation.unflatten(0, self._leading_shape))
        return None if replacement is None else replacement.flatten(0, -2)


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
