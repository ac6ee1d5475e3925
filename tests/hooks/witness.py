"""What the tests hold the hooks against: plain torch hooks, written out, and a count of all hooks on a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def first(value: Any) -> Tensor:
    """The activation in what a module was given or has returned, for the forms that occur in `families`."""
    return value[0] if isinstance(value, tuple | list) else value


@contextmanager
def recorded(model: nn.Module, places: list[str]) -> Iterator[dict[str, Tensor]]:
    """Canonical name to a copy of the activation that passed there, through torch's own hooks."""
    found: dict[str, Tensor] = {}
    handles = []

    def recorder(place: str) -> Callable:
        def record(module: nn.Module, args: tuple, kwargs: dict[str, Any], *output: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            found[place] = first(output[0] if output else given).clone()

        return record

    for place in places:
        path, _, side = place.rpartition(".")
        module = model.get_submodule(path)
        register = module.register_forward_pre_hook if side == "input" else module.register_forward_hook
        handles.append(register(recorder(place), with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(model: nn.Module, place: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What passes at a canonical name is changed, through torch's own hooks."""
    path, _, side = place.rpartition(".")
    module = model.get_submodule(path)

    def on_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(kwargs["hidden_states"])}

    def on_output(module: nn.Module, args: tuple, output: Any) -> Any:
        changed = change(first(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    if side == "input":
        handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()


def count_hooks(model: nn.Module) -> int:
    """How many hooks hang on a model's modules, of all kinds."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
