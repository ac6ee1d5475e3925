"""Refusing NaN and infinity where they would become a figure or a threshold without an error."""

from torch import Tensor, float32


def refuse_non_finite(rows: Tensor, called: str) -> None:
    """Refuses rows of which one holds NaN or infinity.

    Args:
        rows: (..., d).
        called: What they are, in the plural.

    Raises:
        ValueError: With how many rows are such.
    """
    # One reduction, which is finite where all its terms are unless it overflows.
    if not rows.sum(dtype=float32).isfinite() and (bad := int((~rows.isfinite()).any(-1).sum())):
        n_rows = rows[..., 0].numel()
        raise ValueError(f"{called} hold NaN or infinity in {bad} of {n_rows} rows: expected finite numbers alone.")
