"""Writing activations: `splice` puts what an edit makes of an activation in its place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hfsae.hooks.access import Site, visiting
from hfsae.hooks.names import resolve_hook_point
from hfsae.hooks.passes import Passes
from hfsae.hooks.points import HookPoint, HookPointError
from hfsae.hooks.sites import Sites


@contextmanager
def splice(
    model: nn.Module,
    hook_point: str | HookPoint,
    edit: Callable[[Tensor], Any],
    *,
    keep_error: bool = False,
    detach_error: bool = False,
) -> Iterator[HookPoint]:
    """Replace an activation while the model runs.

    `edit` gets the activation x, (batch, seq, d), as the model computes it (its dtype, on the device of that layer).
    It returns what the model goes on with. That may come in another dtype or on another device; it is brought back.

    * Replace: `edit` returns the replacement.
    * Replace and keep the error: with `keep_error`, `edit` returns a pair (x_hat, x_new), a reconstruction of x and
      the same after an intervention. The model goes on with x_new + (x - x_hat): x with the intervention's effect,
      without the reconstruction's faults. Where both are equal this is x, to the last bit.
    * Add a vector: `edit=add_vector(v)`.

    Gradients flow through what is spliced in, through x_hat and through the error term x - x_hat. `detach_error` holds
    that term constant, so that they flow through x_new alone.

    Splices compose with each other and with `capture`: contexts entered first act first. At `resid_mid`, where the
    module only reads the residual stream, the stream itself is replaced, as it is at `resid_pre` and `resid_post`.

    Args:
        model: A Hugging Face causal LM, its base model, or a multimodal model around one.
        hook_point: One place, as `resolve_hook_point` takes it.
        edit: Makes the replacement, of x's shape. It is called once a forward pass: in `generate` with the whole
            prompt first, then with one position at a time.
        keep_error: Whether `edit` returns a pair and the reconstruction error is kept.
        detach_error: Whether no gradient flows through the error term. Only with `keep_error`.

    Yields:
        The resolved hook point.

    Raises:
        HookPointError: If the place does not exist, or `detach_error` is set without `keep_error`; before anything
            runs. From inside the forward pass, if `edit` returns another shape than it got. Likewise if the model
            passes the place never, or several times where the name does not say which.
        TypeError: From inside the forward pass, if `edit` returns something else than it should.

    Example:
        >>> def without_feature_17(x):
        ...     features = sae.encode(x)
        ...     ablated = features.clone()
        ...     ablated[..., 17] = 0
        ...     return sae.decode(features), sae.decode(ablated)
        >>> with splice(model, "resid_post.8", without_feature_17, keep_error=True):
        ...     logits = model(input_ids).logits
    """
    if detach_error and not keep_error:
        raise HookPointError("detach_error concerns the error term, which is only kept with keep_error=True")
    point = resolve_hook_point(model, hook_point)
    sites = Sites.at(model, [point])
    with sites.passes() as passes, splicing(sites[point], edit, passes, keep_error, detach_error):
        yield point


@contextmanager
def splicing(
    site: Site, edit: Callable[[Tensor], Any], passes: Passes, keep_error: bool = False, detach_error: bool = False
) -> Iterator[None]:
    """`splice` at a site that is known, in passes that are open already."""

    def replace(x: Tensor) -> Tensor:
        if keep_error:
            reconstruction, edited = _checked_pair(edit(x), x)
            base = x
            if detach_error:
                base, reconstruction = base.detach(), reconstruction.detach()
            edited = base + (edited - reconstruction)
        else:
            edited = _checked(edit(x), x)
        # A copy, because some models go on to write into their modules' outputs, and this tensor is the user's.
        return edited.to(x.dtype, copy=True)

    with visiting(site, replace, passes):
        yield


def add_vector(vector: Tensor, scale: float = 1.0) -> Callable[[Tensor], Tensor]:
    """An edit for `splice` that adds `scale * vector` at every position.

    Args:
        vector: Direction, (d,), or anything that broadcasts against (batch, seq, d). It may lie on another device
            than the layer. Gradients reach it.
        scale: Factor.

    Returns:
        The edit.

    Example:
        >>> with splice(model, "resid_post.8", add_vector(sae.W_dec[17], scale=40)):
        ...     tokens = model.generate(**inputs)
    """

    def edit(x: Tensor) -> Tensor:
        return x + scale * vector.to(x.device)

    return edit


def _checked(value: Any, x: Tensor) -> Tensor:
    """What an edit returned, on x's device."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"a splice's edit must return a Tensor (with keep_error, a pair of them), got {type(value).__name__}"
        )
    if value.shape != x.shape:
        raise HookPointError(f"a splice's edit must keep the shape {tuple(x.shape)}, got {tuple(value.shape)}")
    return value.to(x.device)


def _checked_pair(value: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(
            f"with keep_error a splice's edit must return a pair (reconstruction, edited reconstruction), got "
            f"{type(value).__name__}"
        )
    return _checked(value[0], x), _checked(value[1], x)
