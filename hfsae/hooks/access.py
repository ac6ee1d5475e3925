"""Reading and replacing the activation at a hook point, in whatever form the module passes it.

`visiting` is the one way in: what `capture` and `splice` do are both visits.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from hfsae.hooks.context_hooks import of_this_context
from hfsae.hooks.layout import DecoderLayout
from hfsae.hooks.passes import Listener, Passes
from hfsae.hooks.points import HookPoint, HookPointError

Visitor = Callable[[Tensor], Tensor | None]
"""Gets the activation, (batch, seq, d); returns what takes its place, or None to leave it as it is."""


@dataclass(frozen=True)
class Site:
    """A hook point of one model, and what whoever visits it has to know.

    Attributes:
        hook_point: The place.
        module: The module whose input or output passes there.
        block: The decoder block around that module; None where there is none, or it is the module itself.
        through: Whether a replacement is written through to the residual stream, not to the module that reads it.
        stream_axis: The axis on which one of several streams is chosen; None where the name chooses none.
        runs_again: Whether gradient checkpointing runs the module again in the backward pass.
        time_major: Whether activations are (seq, batch, d).
    """

    hook_point: HookPoint
    module: nn.Module
    block: nn.Module | None
    through: bool
    stream_axis: int | None
    runs_again: bool
    time_major: bool = False

    @classmethod
    def find(cls, model: nn.Module, layout: DecoderLayout | None, hook_point: HookPoint) -> "Site":
        """Where a resolved hook point lies in its model; the model is not run.

        Raises:
            HookPointError: If the name chooses a stream that is not there.
        """
        module = model.get_submodule(hook_point.path)
        around = layout.block_around(hook_point.path) if layout is not None else None
        return cls(
            hook_point,
            module,
            block=None if around is module else around,
            through=layout is not None and "resid_mid" in layout.roles(hook_point),
            stream_axis=layout.stream_axis(hook_point) if layout is not None else None,
            runs_again=_runs_again_in_backward(module, around),
        )


def _runs_again_in_backward(module: nn.Module, block: nn.Module | None) -> bool:
    """Whether a module lies in what gradient checkpointing runs again.

    transformers' own blocks keep their hooks outside of the part that runs again; others may not.
    """
    if block is None:
        return False
    keeps_hooks_outside = isinstance(block, GradientCheckpointingLayer) and type(block).__call__ is nn.Module.__call__
    return not (module is block and keeps_hooks_outside)


def passes_of(model: nn.Module, sites: Iterable[Site], wrapper: nn.Module | None = None) -> Passes:
    """A model's forward passes, for whoever visits some of its sites.

    Args:
        model: The model that will be called.
        sites: Where it is visited.
        wrapper: What is around it and may be called in its place.
    """
    sites = list(sites)
    recomputed = any(site.runs_again for site in sites)
    return Passes(model, [site.hook_point.path for site in sites], wrapper=wrapper, recomputed=recomputed)


@contextmanager
def visiting(
    site: Site, visitor: Visitor, passes: Passes, *, may_be_skipped: bool = False, every_visit: bool = False
) -> Iterator[None]:
    """Call `visitor` when the model passes a site; leaving the context takes all hooks off.

    The visitor sees (batch, seq, d) also where the module works on flattened tokens, (batch * seq, d), as OPT's `fc1`
    and `fc2` do. It does so, too, where the sequence comes first. Of several streams it sees the one that is named.
    Visits at one place happen in the order in which their contexts were entered, and each sees what the one before put
    there. A forward pass of the model that does not pass the place once, or not the visit that it names, is an error.

    Args:
        site: The place.
        visitor: What to do there. A replacement has the activation's shape, dtype and device.
        passes: The model's passes, which are open.
        may_be_skipped: Whether a pass that never comes to the place is no error.
        every_visit: Whether the visitor is called each time where the place is passed several times.
    """
    visit = _Visit(site, visitor, passes, may_be_skipped=may_be_skipped, every_visit=every_visit)
    passes.tell(visit)
    with ExitStack() as hooks:
        if site.block is not None:
            hooks.callback(
                site.block.register_forward_pre_hook(of_this_context(visit.on_block), with_kwargs=True).remove
            )
        if site.hook_point.side == "input":
            hooks.callback(
                site.module.register_forward_pre_hook(of_this_context(visit.on_input), with_kwargs=True).remove
            )
        else:
            hooks.callback(site.module.register_forward_hook(of_this_context(visit.on_output)).remove)
            _put_recorders_last(site.module)
        yield


def _put_recorders_last(module: nn.Module) -> None:
    """Lets `output_hidden_states` tell what a visit put into a block's output.

    transformers 5 reads hidden states by forward hooks (`utils/output_capturing.py`). It puts them on the blocks when
    they are first asked for, and leaves them there. A hook that comes later would change what the next block reads,
    and not what the model says that it read.
    """
    hooks = module._forward_hooks
    for number, hook in list(hooks.items()):
        if getattr(hook, "__module__", None) == "transformers.utils.output_capturing":
            hooks[number] = hooks.pop(number)


class _Visit(Listener):
    """The hooks of one visit: take the activation out of a call, show it to the visitor, put back what it returns.

    Args:
        site: The place.
        visitor: What to do there.
        passes: The model's forward passes.
        may_be_skipped: Whether a pass that never comes here is no error.
        every_visit: Whether each of several visits in a pass is meant.
    """

    def __init__(self, site: Site, visitor: Visitor, passes: Passes, *, may_be_skipped: bool, every_visit: bool):
        self._site = site
        self._hook_point = site.hook_point
        self._visitor = visitor
        self._passes = passes
        self._may_be_skipped = may_be_skipped
        self._every_visit = every_visit
        self._leading_shape = torch.Size()
        self._visits = 0

    def begins(self) -> None:
        self._visits = 0

    def ends(self, output: Any) -> None:
        """In the pass that has ended, the place must have been passed."""
        if self._visits == 0 and self._passes.is_cut_short:
            return
        if self._visits == 0 and not self._may_be_skipped:
            raise never_passed(self._passes.model_name, [self._hook_point])
        if self._hook_point.visit is not None and self._visits <= self._hook_point.visit:
            raise HookPointError(
                f"{self._hook_point} was asked for, but {self._passes.model_name} passed the place {self._visits} "
                f"times in this forward pass: visits go from 0 to {self._visits - 1}."
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
        if self._site.through:
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
                    f"{self._hook_point} was passed outside of a forward pass of {self._passes.model_name}, so its "
                    "visits cannot be counted: call the model itself, without gradient checkpointing."
                )
            return True
        self._passes.passed()
        self._visits += 1
        if self._every_visit:
            return True
        if wanted is None and self._visits > 1:
            raise several_visits(self._passes.model_name, self._hook_point)
        return wanted is None or self._visits - 1 == wanted

    def _activation(self, value: Any) -> Tensor:
        activation = _first(value)
        if not isinstance(activation, Tensor):
            raise HookPointError(
                f"{self._hook_point} holds no activation: found {type(activation).__name__}, expected a Tensor"
            )
        return activation

    def _visit(self, activation: Tensor) -> Tensor | None:
        replacement = self._visit_as_tokens(activation)
        if replacement is not None:
            self._passes.refuse_edits_nobody_repeats()
        return replacement

    def _visit_as_tokens(self, activation: Tensor) -> Tensor | None:
        """What the visitor makes of an activation that it sees as (batch, seq, d)."""
        if self._site.stream_axis is not None:
            assert self._hook_point.stream is not None
            replacement = self._visitor(activation.select(self._site.stream_axis, self._hook_point.stream))
            if replacement is None:
                return None
            return activation.select_scatter(replacement, self._site.stream_axis, self._hook_point.stream)
        if self._site.time_major and activation.dim() > 2:
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
        "this input does not use (cross-attention without images). Name a place that this input passes"
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
