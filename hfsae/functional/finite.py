"""Refusing NaN and infinity where they would become a figure or a threshold without an error."""

from torch import Tensor

from hfsae.finite_numbers import all_finite, count_non_finite


def refuse_non_finite(rows: Tensor, called: str) -> None:
    """Refuses rows of which one holds NaN or infinity.

    Args:
        rows: (..., d).
        called: What they are, in the plural.

    Raises:
        ValueError: With how many rows are such.
    """
    if not all_finite(rows):
        bad, n_rows = count_non_finite(rows), rows[..., 0].numel()
        raise ValueError(f"{called} hold NaN or infinity in {bad} of {n_rows} rows: expected finite numbers alone.")
