"""Whether tensors only stand for others: what asks them for numbers then cannot run, and what is plain and dense can.

Exporting (`torch.export`), tracing (`torch.jit.trace`), the transforms of `torch.func` (`vmap`, `jacrev`) and the meta
device see operations instead of numbers. The sparse paths ask how many entries there are; here they must not.
"""

import torch
from torch import Tensor


def is_traced(tensor: Tensor) -> bool:
    """Whether a computation is being recorded or transformed, or has no numbers at all."""
    if tensor.is_meta or torch.jit.is_tracing():
        return True
    # torch 2.6 has no such question; its export of data-dependent code fails by itself.
    is_exporting = getattr(torch.compiler, "is_exporting", None)
    if is_exporting is not None and is_exporting():
        return True
    return torch._C._are_functorch_transforms_active()
