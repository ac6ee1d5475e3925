"""`input_transform`: what an SAE takes out of each activation before it encodes, and puts back after it decodes."""

import torch
from torch import Tensor

LAYER_NORM_EPS = 1e-5


def taken_apart(x: Tensor, transform: str) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """Transformed activations, and what turns them back: `x = transformed × spread + mean`.

    Args:
        x: (..., d).
        transform: `config.input_transform`: `"none"`, `"center"`, `"layer_norm"` or `"constant_norm"`.

    Returns:
        The transformed activations (..., d), the mean and the spread, (..., 1) each or a number.
    """
    if transform == "none":
        return x, 0.0, 1.0
    if transform == "constant_norm":
        spread = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return x / spread.clamp(min=torch.finfo(x.dtype).tiny), 0.0, spread
    mean = x.mean(-1, keepdim=True)
    if transform == "center":
        return x - mean, mean, 1.0
    spread = x.std(-1, keepdim=True)
    return (x - mean) / (spread + LAYER_NORM_EPS), mean, spread
