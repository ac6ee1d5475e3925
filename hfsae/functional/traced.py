"""Whether tensors only stand for others: what asks them for numbers then cannot run, and what is plain and dense can.

Exporting (`torch.export`), tracing (`torch.jit.trace`), the transforms of `torch.func` (`vmap`, `jacrev`) and the meta
device see operations instead of numbers. The sparse paths ask how many entries there are; here they must not.
"""

import torch
from torch import Tensor


def is_traced(tensor: Tensor) -> bool:
    """Whether a computation is being recorded or transformed, or has no numbers at all."""
    if tensor.is_meta or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return True
    is_exporting = getattr(torch.compiler, "is_exporting", _is_exporting)
    if is_exporting():
        return True
    return torch._C._are_functorch_transforms_active()


def _is_exporting() -> bool:
    """What torch 2.6 can tell of it: not of a strict export, which it takes for a compilation."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
