"""Aligned rows: what a feature reads and what it writes have the product 1 (arXiv:2605.18629).

A feature that reads its own output then finds the value that it wrote. What an encoder row has at right angles to its
decoder row is free: by that it tells features apart that resemble each other.
"""

import torch
from torch import Tensor

from hfsae.functional.blocks import in_blocks


@torch.no_grad()
def align(encoder: Tensor, decoder: Tensor) -> None:
    """Moves encoder rows along their decoder rows, in place, until ⟨e_i, d_i⟩ = 1.

    Args:
        encoder: (n, d).
        decoder: (n, d), of any norm; a row of zeros leaves its encoder row as it is.

    Example:
        >>> import torch
        >>> from hfsae.functional.alignment import align
        >>> encoder = torch.tensor([[3.0, 5.0]])
        >>> align(encoder, torch.tensor([[2.0, 0.0]]))
        >>> encoder
        tensor([[0.5000, 5.0000]])
    """
    for rows, along in in_blocks(encoder, decoder):
        missing = 1 - (rows * along).sum(1, keepdim=True)
        rows.addcmul_(along, missing / _squared_norms(along))


@torch.no_grad()
def keep_aligned(gradient: Tensor, decoder: Tensor) -> None:
    """Takes from an encoder's gradient, in place, what lies along decoder rows: `align` would undo it.

    Args:
        gradient: (n, d).
        decoder: (n, d).
    """
    for rows, along in in_blocks(gradient, decoder):
        rows.addcmul_(along, (rows * along).sum(1, keepdim=True) / _squared_norms(along), value=-1)


def _squared_norms(rows: Tensor) -> Tensor:
    return rows.square().sum(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
