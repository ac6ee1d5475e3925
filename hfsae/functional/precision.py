"""Where narrow floats are too narrow (sums over many tokens, losses, scales), and where autocast wants them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it was narrower; float32 and float64 stay as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def narrowed(tensor: Tensor) -> Tensor:
    """The tensor as a matrix product reads it here: under autocast in the narrow type; float64 stays as it is."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def accelerator_here() -> torch.device | None:
    """The kind of accelerator that this machine has; None where it has none.

    torch 2.6 built for CUDA raises where it is asked for one that is not there; later releases name it.
    """
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None


@contextmanager
def own_default_device() -> Iterator[None]:
    """Makes new tensors inside on the CPU where no place is named, whatever `torch.set_default_device` says.

    Example:
        >>> with torch.device("meta"), own_default_device():
        ...     torch.ones(1).device
        device(type='cpu')
    """
    with torch.device("cpu") if torch.get_default_device().type != "cpu" else nullcontext():
        yield


@contextmanager
def own_precision() -> Iterator[None]:
    """Makes products inside in the types of their tensors, whatever `torch.autocast` stands around.

    What is measured goes into files that say its precision: a caller's autocast would make them say a wrong one. A
    caller's default device is set aside too.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), own_precision():
        ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        torch.float32
    """
    accelerator = accelerator_here()
    devices = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
    with own_default_device(), ExitStack() as without:
        for device in devices:
            if torch.is_autocast_enabled(device):
                without.enter_context(torch.autocast(device, enabled=False))
        yield
