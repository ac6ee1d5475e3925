"""One optimiser step of an SAE: rows kept where they must be, gradients clipped, Adam."""

import torch
from torch import Tensor

from hfsae.functional.alignment import align, keep_aligned
from hfsae.functional.blocks import in_blocks
from hfsae.functional.kernels import serves
from hfsae.modeling import SAE
from hfsae.parallel.sharded_sae import own_part

_LEAST_NORM = 1e-12


def build_optimiser(sae: SAE, *, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Adam:
    """Fused Adam over an SAE's parameters, thresholds in a group of their own."""
    thresholds = [p for name, p in sae.named_parameters() if name == "threshold"]
    others = [p for name, p in sae.named_parameters() if name != "threshold"]
    groups = [{"params": others}] + ([{"params": thresholds}] if thresholds else [])
    if sae.device.type != "cuda":
        return torch.optim.Adam(groups, lr=lr, betas=betas, eps=eps, fused=True)
    # A learning rate that lies on the device may change between the replays of a recorded step.
    rate = torch.tensor(lr, dtype=torch.float32, device=sae.device)
    return torch.optim.Adam(groups, lr=rate, betas=betas, eps=eps, fused=True, capturable=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of all groups, in place where it lies on a device."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def constrain_gradients(sae: SAE) -> None:
    """Takes from the gradients what `restore_rows` would undo, but Adam would remember."""
    for rows in sae.decoder_weights if sae.unit_decoder_rows else []:
        remove_parallel_gradient(rows)
    gradient = sae.encoder.weight.grad
    if sae.config.aligned and gradient is not None:
        keep_aligned(own_part(gradient), own_part(sae.W_dec))


def restore_rows(sae: SAE) -> None:
    """Brings decoder rows back to unit norm and encoder rows back to theirs, where training keeps them so."""
    for rows in sae.decoder_weights if sae.unit_decoder_rows else []:
        renormalise(rows)
    if sae.config.aligned:
        align(own_part(sae.encoder.weight), own_part(sae.W_dec))


@torch.no_grad()
def remove_parallel_gradient(rows: Tensor) -> None:
    """Takes from each row's gradient the part along the row.

    Args:
        rows: (n, d) parameter whose rows have unit norm and which has a gradient.
    """
    if rows.grad is None:
        return
    grads, rows = own_part(rows.grad), own_part(rows)
    if _by_kernel(grads, rows):
        from hfsae.functional.kernels import decoder_rows as kernel

        return kernel.remove_parallel(grads, rows)
    for grad, row in in_blocks(grads, rows):
        along = (grad * row).sum(1, keepdim=True)
        grad.addcmul_(row, along, value=-1)


@torch.no_grad()
def renormalise(rows: Tensor) -> None:
    """Brings every row back to unit norm."""
    rows = own_part(rows)
    if _by_kernel(rows):
        from hfsae.functional.kernels import decoder_rows as kernel

        return kernel.divide_by_norms(rows, _LEAST_NORM)
    for (some,) in in_blocks(rows):
        some.div_(some.norm(dim=1, keepdim=True).clamp(min=_LEAST_NORM))


def _by_kernel(*tensors: Tensor) -> bool:
    return serves(*tensors) and all(tensor.is_contiguous() for tensor in tensors)


def clip(sae: SAE, optimiser: torch.optim.Optimizer, max_norm: float) -> None:
    """Scales the gradient of one SAE down to `max_norm`, without reading the norm back; 0 leaves it alone.

    On a CPU the optimiser does so on its way over the gradients, which saves one over all of them by themselves.
    """
    if max_norm <= 0:
        return
    grads = [parameter.grad for parameter in sae.parameters() if parameter.grad is not None]
    if not all(type(grad) is Tensor and grad.device.type == "cpu" for grad in grads):
        torch.nn.utils.clip_grad_norm_(sae.parameters(), max_norm)
        return
    too_long = torch.nn.utils.get_total_norm(grads) / max_norm
    # What fused Adam divides gradients by; it is there for gradients of scaled losses.
    optimiser.grad_scale = too_long.float().clamp(min=1.0)  # type: ignore[attr-defined]
