"""Hooks that a context hangs on a model for its own time."""

from collections.abc import Callable
from typing import Any

from hfsae.hooks.eager import uncompiled
from hfsae.hooks.points import HookPointError

# The module, its arguments, and its keyword arguments or its output.
_GIVEN = 3


def of_this_context(hook: Callable) -> Callable:
    """A hook that torch.compile leaves alone, and that no copy of the model takes along."""
    return _OfContext(uncompiled(hook))


class _OfContext:
    """A hook that is refused where its model is copied or pickled.

    torch gives a pre-hook keyword arguments while it is on the list of hooks that want them. A hook that another
    thread hangs up or takes off at that moment gets none. It is of no pass that is under way, and does nothing.

    A copy would have it for good, for nobody takes it off there. So would it have the `generate` that is put on the
    model meanwhile, which runs the model itself.
    """

    def __init__(self, hook: Callable):
        self._hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._hook(*args, **kwargs) if len(args) == _GIVEN else None

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise HookPointError(
            "a model cannot be copied or pickled inside of a context that reads or edits it, as the copy would keep "
            "the hooks: copy it outside of the `with`."
        )
