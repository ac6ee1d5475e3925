"""Cross-entropies and divergences of several runs over the same text, without a table of all logits."""

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Run = TypeVar("Run")

# Logits are made and used up in pieces of this many numbers, but of no fewer rows than keep the product efficient. On
# a CPU, tables of many megabytes are given back to the operating system after use, and to fetch them again costs a
# third of the speed (measured at a vocabulary of 4096, width 128: 2²⁶ numbers a piece against 2²⁰).
_CPU_PIECE = 1 << 20
_ACCELERATOR_PIECE = 1 << 27
_LEAST_ROWS = 64


@torch.no_grad()
def prediction_losses(
    finals: Mapping[Run, Tensor],
    targets: Tensor,
    logits: Callable[[Tensor], Tensor],
    vocabulary: int,
    *,
    clean: Run,
    diverging: Collection[Run],
) -> tuple[dict[Run, Tensor], dict[Run, Tensor]]:
    """Summed cross-entropies of runs, and summed KL divergences of some of them from the clean one.

    Args:
        finals: For each run what `logits` takes, (N, ...), of the N positions whose prediction counts.
        targets: (N,) the token that was right at each of them.
        logits: Makes logits (n, vocabulary) of some rows of a run.
        vocabulary: Number of logits a position has.
        clean: The run that the others are compared with; one of `finals`.
        diverging: The runs whose KL(clean ‖ run) is wanted.

    Returns:
        Nats by run, and divergences by run: float64 scalars.
    """
    device = finals[clean].device
    zero = torch.zeros((), dtype=torch.float64, device=device)
    nats, divergences = dict.fromkeys(finals, zero), dict.fromkeys(diverging, zero)
    piece = (_CPU_PIECE if device.type == "cpu" else _ACCELERATOR_PIECE) // vocabulary
    piece = max(piece, _LEAST_ROWS)
    for start in range(0, len(targets), piece):
        rows = slice(start, start + piece)
        expected = targets[rows].to(device)
        reference = F.log_softmax(logits(finals[clean][rows]).float(), dim=-1)
        nats[clean] = nats[clean] + _nats(reference, expected)
        probability = reference.exp() if diverging else reference
        for run, final in finals.items():
            if run == clean:
                continue
            log = F.log_softmax(logits(final[rows]).float(), dim=-1)
            nats[run] = nats[run] + _nats(log, expected)
            if run in divergences:
                # In place: a fresh table for every intermediate result takes as long as computing it.
                change = without_impossible(log.sub_(reference), reference)
                divergences[run] = divergences[run] - change.mul_(probability).sum(dtype=torch.float64)
    return nats, divergences


def without_impossible(change: Tensor, reference: Tensor) -> Tensor:
    """Puts 0 where p is 0, in place: what p rules out adds nothing to KL(p ‖ q).

    Models rule tokens out with logits of −inf, and −inf less −inf is no number.

    Args:
        change: (n, vocabulary), the difference of log p and log q.
        reference: (n, vocabulary), log p.

    Returns:
        `change`.
    """
    if bool(reference.amin() == -torch.inf):
        change.masked_fill_(reference == -torch.inf, 0)
    return change


def _nats(log_probabilities: Tensor, expected: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, expected[:, None]).sum(dtype=torch.float64)
