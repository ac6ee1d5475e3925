"""A model's forward passes as one context sees them: when each begins and ends, and what must happen in it.

The context's hooks hang on the model that it was given and on every `PreTrainedModel` between it and the places in
question. For wrappers call what they hold in ways of their own: `PeftModel.forward` goes round the `__call__` of the
causal LM, `PeftModel.generate` round its own `forward`. A pass begins with the outermost of them that is called.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfsae.hooks.checkpointing import backward_pass, checkpoints_gradients, is_checkpointed, is_reentrant
from hfsae.hooks.context_hooks import of_this_context
from hfsae.hooks.eager import running_as_written
from hfsae.hooks.points import HookPointError
from hfsae.hooks.quiet import depth_of_questions


class Listener:
    """What wants to know of a model's passes; a subclass overrides what it has use for."""

    def begins(self) -> None:
        """A pass begins."""

    def called(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A model in the pass is called, the outermost first, before it computes anything."""

    def ends(self, output: Any) -> None:
        """The pass has ended with this output of the outermost model."""


class Passes:
    """The passes of one model, in the thread that opened this context.

    Args:
        model: The model that will be called.
        paths: Paths of the modules in question, below `model`.
        wrapper: What is around it and may be called in its place.
        recomputed: Whether some of them run again in the backward pass when gradients are checkpointed.

    Attributes:
        model_name: The model's class.
        inside: Whether a pass is under way.
        number: How many passes have begun.
    """

    def __init__(
        self, model: nn.Module, paths: Iterable[str], *, wrapper: nn.Module | None = None, recomputed: bool = False
    ):
        around = [wrapper] if isinstance(wrapper, nn.Module) and wrapper is not model else []
        self._levels = [*around, *_models_on_the_way(model, paths)]
        self._model = self._levels[0]
        self._config = getattr(model, "config", None)
        self._n_layers = self._layers_to_run()
        self.model_name = type(model).__name__
        self._recomputed = recomputed
        self._listeners: list[Listener] = []
        self._stack: list[int] = []
        self._with_gradients = False
        self._checkpointed_around = False
        self._reentrant_around = False
        self._checkpointed_inside = False
        self._thread = 0
        self._depth = 0
        self._backward = -1
        self._open = False
        self.number = 0

    @property
    def inside(self) -> bool:
        return bool(self._stack)

    def tell(self, listener: Listener) -> None:
        """Adds a listener; those added first are told first."""
        self._listeners.append(listener)

    @contextmanager
    def open(self) -> Iterator["Passes"]:
        """Hangs the hooks on the model; leaving takes them off."""
        self._thread = threading.get_ident()
        self._depth = depth_of_questions()
        self._n_layers = self._layers_to_run()
        with ExitStack() as stack:
            stack.enter_context(running_as_written(self._levels))
            for level, module in enumerate(self._levels):
                before = of_this_context(partial(self._before, level))
                after = of_this_context(partial(self._after, level))
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after, always_call=True).remove)
            open_here = _open_passes()
            open_here.append(self)
            self._open = True
            try:
                yield self
            finally:
                self._open = False
                open_here.remove(self)
                # Listeners know these passes, and hold activations: a circle that only Python's collector would free,
                # many passes later.
                self._listeners.clear()

    def act(self) -> bool:
        """Whether a hook that is called now is to do anything.

        Not in another thread, nor after the context, when compiled code may still call it. What runs again in the
        backward pass does so in whatever thread autograd uses.
        """
        if not self._open:
            return False
        if threading.get_ident() == self._thread:
            return depth_of_questions() == self._depth
        if self._checkpointed_around:  # a loss beside the model may make it run again before its output has gradients
            return self.runs_again
        return self._backward == backward_pass() != -1

    @property
    def loses_gradients(self) -> bool:
        """Whether what is computed here has no gradients, though the pass was begun with them.

        So it is in what reentrant gradient checkpointing runs: gradients come when it runs again.
        """
        if not self.inside or torch.is_grad_enabled():
            return False
        if self._reentrant_around:
            return True
        return self._with_gradients and (checkpoints_gradients(self._model) or is_reentrant())

    @property
    def is_cut_short(self) -> bool:
        """Whether the model now runs fewer of its blocks than when the context began.

        So `generate` drafts with `assistant_early_exit`; whole passes then check every token.
        """
        return self._layers_to_run() < self._n_layers

    def _layers_to_run(self) -> int:
        """How many blocks the config says; 0 where it says nothing."""
        said = getattr(self._config, "num_hidden_layers", None)
        return said if isinstance(said, int) else 0

    @property
    def runs_again(self) -> bool:
        """Whether a backward pass has called for what runs now."""
        return backward_pass() != -1

    def passed(self) -> None:
        """One of the modules in question is called in a pass: notes whether the backward pass will call it again."""
        if self._with_gradients and not self._checkpointed_inside and not self.runs_again:
            self._checkpointed_inside = is_checkpointed()

    def refuse_edits_nobody_repeats(self) -> None:
        """Refuses an edit that the backward pass may have to repeat, where nothing tells us when it begins.

        Raises:
            HookPointError: Inside of a reentrant checkpoint around the model.
        """
        if self._reentrant_around and not self.runs_again:
            raise HookPointError(
                f"{self.model_name} runs inside of a reentrant torch.utils.checkpoint, which runs it again in the "
                "backward pass, where this edit could be missing: pass use_reentrant=False."
            )

    def forget(self) -> None:
        """Takes the pass that is under way for ended."""
        self._stack.clear()

    def _before(self, level: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not self.act():
            return
        while self._stack and self._stack[-1] >= level:  # left by a pass that was interrupted
            self._stack.pop()
        if not self._stack:
            if not self.runs_again:  # else it is a pass that runs again
                self.number += 1
                self._with_gradients = torch.is_grad_enabled()
                self._checkpointed_around = self._checkpointed_inside = is_checkpointed()
                self._reentrant_around = is_reentrant()
            for listener in self._listeners:
                listener.begins()
        self._stack.append(level)
        for listener in self._listeners:
            listener.called(module, args, kwargs)

    def _after(self, level: int, module: nn.Module, args: tuple, output: Any) -> None:
        if not self.act() or level not in self._stack:
            return
        del self._stack[self._stack.index(level) :]
        if self._stack or output is None:  # None: the pass has failed
            return
        for listener in self._listeners:
            listener.ends(output)
        if self._with_gradients and not self.runs_again and self._is_checkpointed():
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(partial(self._before_backward, self.number))

    def _is_checkpointed(self) -> bool:
        return self._checkpointed_inside or (self._recomputed and checkpoints_gradients(self._model))

    def _before_backward(self, number: int, gradient: Tensor) -> None:
        """Blocks are about to run again, and must find this context as it was."""
        if not self._open:
            raise HookPointError(
                "gradients are checkpointed, so the blocks run again in the backward pass, but the context that read "
                "or edited inside of them has been left: call backward() inside the `with`, or "
                "model.gradient_checkpointing_disable()."
            )
        if number != self.number:
            raise HookPointError(
                "gradients are checkpointed, so the blocks run again in the backward pass, but the model has been "
                "called since: call backward() before the next forward pass, or "
                "model.gradient_checkpointing_disable()."
            )
        self._backward = backward_pass()


_this_thread = threading.local()


def _open_passes() -> list[Passes]:
    """The contexts that the calling thread has entered and not left."""
    if not hasattr(_this_thread, "passes"):
        _this_thread.passes = []
    return _this_thread.passes


def forget_passes() -> None:
    """Tells the calling thread's contexts that the pass under way was stopped from within."""
    for passes in _open_passes():
        passes.forget()


def _models_on_the_way(model: nn.Module, paths: Iterable[str]) -> list[nn.Module]:
    """The model, then every `PreTrainedModel` that holds one of the modules, the outer ones first."""
    found: dict[str, nn.Module] = {}
    for path in paths:
        parts = path.split(".")
        for depth in range(1, len(parts)):
            above = ".".join(parts[:depth])
            module = model.get_submodule(above)
            if isinstance(module, PreTrainedModel):
                found[above] = module
    return [model, *(found[path] for path in sorted(found, key=lambda path: path.count(".")))]


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a model's output."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
