"""Some rows of a parameter, for the price of those rows in both directions."""

import torch
from torch import Tensor


def rows_at(parameter: Tensor, chosen: Tensor) -> Tensor:
    """`parameter[chosen]`, whose gradient is a sparse tensor of those rows.

    Autograd adds it to the gradient of the whole that other uses of the parameter have. A dense one would be filled
    with zeros and added up in full (1,229 of 12288 × 768 numbers on a CPU: 6 ms, not 25). Of what is computed from
    parameters (tied or aligned rows) the gradient is dense: whatever computes it need not take sparse ones.

    Args:
        parameter: (n, d).
        chosen: (rows,) int64, ascending, none twice.

    Returns:
        (rows, d).

    Example:
        >>> import torch
        >>> from hfsae.functional.sparse_rows import rows_at
        >>> weight = torch.ones(3, 2, requires_grad=True)
        >>> (weight.sum() + rows_at(weight, torch.tensor([1])).sum()).backward()
        >>> weight.grad.tolist()
        [[1.0, 1.0], [2.0, 2.0], [1.0, 1.0]]
    """
    if not parameter.is_leaf:
        return parameter.index_select(0, chosen)
    return _RowsAt.apply(parameter, chosen)  # type: ignore[return-value]


class _RowsAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parameter: Tensor, chosen: Tensor) -> Tensor:
        ctx.chosen, ctx.shape = chosen, parameter.shape
        return parameter.index_select(0, chosen)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        # Said twice: torch 2.11 warns where only the argument says it.
        with torch.sparse.check_sparse_tensor_invariants(False):
            rows = torch.sparse_coo_tensor(
                ctx.chosen[None], grad, ctx.shape, is_coalesced=True, check_invariants=False
            )
        return rows, None
