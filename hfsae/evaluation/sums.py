"""What of a batch enters the metrics: float64 sums that add up over batches and processes, whatever the split.

Nothing is ever averaged before the end, and no sum is a small difference of large ones. Squared deviations are taken
about a reference near the mean, which the caller knows from other text.

| sum | shape | over tokens, of |
|---|---|---|
| `n_tokens` | () | 1 |
| `active` | () | the number of active features |
| `tokens_firing` | (n_features,) | 1 where the feature is active |
| `squared_error` | () | ‖y − ŷ‖² |
| `deviation` | (d_out,) | y − reference |
| `squared_deviation` | () | ‖y − reference‖² |
| `cosine` | () | cos(y, ŷ) |
| `norm`, `reconstructed_norm` | () | ‖y‖, ‖ŷ‖ |
| `n_predictions` | () | 1 where the token's prediction counts |
| `clean_nats`, `spliced_nats`, `zero_nats`, `mean_nats` | () | the cross-entropy of each run's predictions |
| `kl_nats` | () | KL(clean ‖ spliced) |

y is what the SAE is to reconstruct (the activation it reads, unless it is a transcoder) and ŷ what it makes of it.
"""

from typing import Any, TypeAlias

import torch
from torch import Tensor

from hfsae.functional import SparseFeatures
from hfsae.processes import has_group

Sums: TypeAlias = dict[str, Tensor]


@torch.no_grad()
def reconstruction_sums(target: Tensor, reconstruction: Tensor, features: SparseFeatures, reference: Tensor) -> Sums:
    """The sums of some tokens that need no language model.

    Args:
        target: (N, d_out), what was to be reconstructed.
        reconstruction: (N, d_out), what became of it.
        features: The features in between, over the same N tokens.
        reference: (d_out,) a vector near the mean of `target`, the same for all batches whose sums are to be added.

    Returns:
        The first nine sums of the table above, on the device of `target`.
    """
    precision = torch.promote_types(target.dtype, torch.float32)
    target, reconstruction, reference = (
        tensor.to(target.device, precision) for tensor in (target, reconstruction, reference)
    )
    deviation = target - reference
    norm, reconstructed_norm = target.norm(dim=-1), reconstruction.norm(dim=-1)
    # A zero vector has no direction: its cosine with anything counts as 0.
    cosine = (target * reconstruction).sum(-1) / (norm * reconstructed_norm).clamp(min=torch.finfo(precision).tiny)
    tokens_firing = features.tokens_firing().double()
    return {
        "n_tokens": torch.tensor(len(target), dtype=torch.float64, device=target.device),
        "active": tokens_firing.sum(),
        "tokens_firing": tokens_firing,
        "squared_error": _total((target - reconstruction).square()),
        "deviation": deviation.sum(0, dtype=torch.float64),
        "squared_deviation": _total(deviation.square()),
        "cosine": _total(cosine),
        "norm": _total(norm),
        "reconstructed_norm": _total(reconstructed_norm),
    }


def _total(values: Tensor) -> Tensor:
    return values.sum(dtype=torch.float64)


def add(sums: Sums, more: Sums) -> Sums:
    """The sums of two sets of tokens together; names that only one has are kept.

    Raises:
        ValueError: If a sum has two shapes: they come from different SAEs.
    """
    for name in sums.keys() & more.keys():
        if sums[name].shape != more[name].shape:
            raise ValueError(
                f"{name} has the shapes {tuple(sums[name].shape)} and {tuple(more[name].shape)}: sums of different "
                "SAEs cannot be added."
            )
    return sums | {name: sums[name] + value if name in sums else value for name, value in more.items()}


def reduce_sums(sums: Sums) -> Sums:
    """The sums over all processes of the default `torch.distributed` group; as they are where there is none.

    Args:
        sums: This process's sums. Every process must call this with sums of the same names and shapes.
    """
    import torch.distributed as distributed

    if not has_group():
        return sums
    names = sorted(sums)
    # Gloo exchanges what lies on the CPU, NCCL what lies on the GPU that the process has taken.
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    flat = torch.cat([sums[name].double().flatten().to(device) for name in names])
    distributed.all_reduce(flat)
    parts = flat.split([sums[name].numel() for name in names])
    return {
        name: part.reshape(sums[name].shape).to(sums[name].device) for name, part in zip(names, parts, strict=True)
    }


def as_columns(sums: Sums, names: Any = None) -> dict[str, list[Any]]:
    """Sums as one row of columns, which is what `add_batch` of an `evaluate` metric takes.

    Args:
        sums: The sums of a batch.
        names: Those wanted; None for all.

    Example:
        >>> as_columns({"active": torch.tensor(64.0), "n_tokens": torch.tensor(2.0)})
        {'active': [64.0], 'n_tokens': [2.0]}
    """
    return {name: [sums[name].tolist()] for name in (sums if names is None else names)}
