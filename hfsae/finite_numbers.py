"""Whether a tensor holds neither NaN nor infinity, and how many of its rows do."""

import torch
from torch import Tensor


def all_finite(values: Tensor) -> Tensor:
    """Whether a tensor holds neither NaN nor infinity, as one bool on its device: nobody waits for the device.

    The smallest and the largest value tell it, in one reduction. A sum would not: it overflows, though its terms are
    finite.

    Args:
        values: Of any shape and dtype; finite if empty.
    """
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    values = values.detach()
    if values.is_floating_point() and values.element_size() == 1:
        values = values.float()  # torch has no comparison of float8
    return torch.stack(torch.aminmax(values)).isfinite().all()


def count_non_finite(rows: Tensor) -> int:
    """How many of the rows (..., d) hold NaN or infinity."""
    return int((~rows.isfinite()).any(-1).sum())
