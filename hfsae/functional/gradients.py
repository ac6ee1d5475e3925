"""Gradients where a caller has switched them off: what needs them works inside of `torch.no_grad` too."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def gradients_on() -> Iterator[None]:
    """Makes gradients inside, whatever stands around: `torch.no_grad` or `torch.inference_mode`.

    Example:
        >>> with torch.inference_mode(), gradients_on():
        ...     x = torch.ones(2, requires_grad=True)
        ...     x.sum().backward()
        >>> x.grad.tolist()
        [1.0, 1.0]
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


def refuse_inference_weights(module: nn.Module) -> None:
    """Refuses a module that torch cannot differentiate through.

    Args:
        module: The module.

    Raises:
        ValueError: If a weight was made inside of `torch.inference_mode`.
    """
    if any(weight.is_inference() for weight in (*module.parameters(), *module.buffers())):
        raise ValueError(
            f"weights of the {type(module).__name__} were made inside of torch.inference_mode(), and torch makes no "
            "gradients with them: load it outside of that block."
        )


@contextmanager
def weights_frozen(module: nn.Module) -> Iterator[None]:
    """While open, no gradient of a module's weights is computed, nor anything kept for it.

    Args:
        module: The module, such as a language model of which only activations need gradients.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
