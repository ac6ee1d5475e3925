"""Where narrow floats are too narrow (sums over many tokens, losses, scales), and where autocast wants them."""

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
