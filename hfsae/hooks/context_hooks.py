"""Hooks that a context hangs on a model for its own time."""

from collections.abc import Callable
from typing import Any

from hfsae.hooks.eager import uncompiled
from hfsae.hooks.points import HookPointError


def of_this_context(hook: Callable) -> Callable:
    """A hook that torch.compile leaves alone, and that no copy of the model takes along."""
    return _OfContext(uncompiled(hook))


class _OfContext:
    """A hook that is refused where its model is copied or pickled.

    A copy would have it for good, for nobody takes it off there. So would it have the `generate` that is put on the
    model meanwhile, which runs the model itself.
    """

    def __init__(self, hook: Callable):
        self._hook = hook

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._hook(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise HookPointError(
            "a model cannot be copied or pickled inside of a context that reads or edits it, as the copy would keep "
            "the hooks: copy it outside of the `with`."
        )
