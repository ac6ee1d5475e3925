"""How far off a product of float32 numbers is that was made of their roundings to bfloat16.

For a token a (d,) and a feature w (d,) with bias b, all float32, let ã, w̃ and b̃ be their roundings to bfloat16. Let h
= a·w + b be the exact number. Then

    a·w − ã·w̃ = (a − ã)·w̃ + a·(w − w̃),   |a·w − ã·w̃| ≤ ‖a − ã‖‖w̃‖ + ‖a‖‖w − w̃‖,

by Cauchy and Schwarz, with all four norms measured, those of features as maxima over the features. Further:

* The bias is off by |b − b̃|, measured.
* Let u = 2⁻²⁴. A sum of m float32 terms, in any order, is off by at most m·u / (1 − m·u) times the sum of their
  magnitudes. (Higham, Accuracy and Stability of Numerical Algorithms, 4.2.) Products of two bfloat16 numbers are exact
  in float32. With the bias and a last sum of partial sums m ≤ d + 2, and Σ|ã_i w̃_i| ≤ ‖ã‖‖w̃‖. To take m·2⁻²³ instead
  covers the denominator, and units that cut off instead of rounding. The float32 value that decides is itself such a
  sum: it comes in twice.
* Units for bfloat16 take numbers below 2⁻¹²⁶ for 0, as operands and as results. Operands: at most 2⁻¹²⁶ √d ‖w̃‖ and
  2⁻¹²⁶ √d ‖ã‖. Results: at most 2⁻¹²⁶ for each of 2d + 2 operations.
* Norms are made in float32 themselves: off by the factor 1 + (d + 8)·2⁻²³ at most, and by √d·2⁻⁶² where squares fall
  below what float32 holds.

Their sum is ε. Then the product p̃ in float32 is within ε of the float32 value h̄ that decides. Last, p̃ is rounded to
bfloat16: h̃ with |p̃ − h̃| ≤ 2⁻⁸|h̃|. So h̃ − 2⁻⁸|h̃| − ε ≤ h̄ ≤ h̃ + 2⁻⁸|h̃| + ε.
"""

from typing import Any

import torch
from torch import Tensor

from hfsae.functional.blocks import in_blocks

HALF_PLACE = 2.0**-8
"""Half a unit in the last place of a bfloat16 number, relative to it."""

FLUSHED = 2.0**-126
"""What is below this is taken for 0."""

LARGEST = 2.0**120
"""Above this nothing is said: sums might overflow."""

# A float32 rounding, or two of them where it is a bound for rounding to nearest.
_ROUNDING = 2.0**-23


class ProductError:
    """What is known of the products of some tokens with all features.

    Args:
        x: (N, d) float32.
        narrow_x: (N, more than d) bfloat16, its first d columns `x` rounded.
        weight: (n, d) float32.
        narrow_weight: (n or more, more than d) bfloat16, its first n rows and d columns `weight` rounded.

    Attributes:
        reach: (N,) float64, no |a·w| of a token is above it.
        off: (N,) float64, what a token's products may be off by before they are rounded to bfloat16, without what
            biases add. It is infinite or NaN where nothing is known.
    """

    def __init__(self, x: Tensor, narrow_x: Tensor, weight: Tensor, narrow_weight: Tensor):
        self._width = x.shape[1]
        x_norm, x_off = self._norms(x, narrow_x)
        w_norm, w_off = (norms.max() for norms in self._norms(weight, narrow_weight[: len(weight)]))
        # The exact rows are no longer than their roundings and what these are off by.
        x_norm = x_norm + x_off
        self.reach = (x_norm + x_off) * (w_norm + w_off)
        flushed = 2 * FLUSHED * (self._width**0.5 * (x_norm + x_off + w_norm + w_off) + 2 * self._width + 2)
        self.off = x_off * w_norm + x_norm * w_off + self.sums_off(self.reach) + flushed

    def sums_off(self, magnitude: Any) -> Any:
        """By how much two float32 sums over terms of such a magnitude together may differ from the exact one."""
        return 2 * (self._width + 2) * _ROUNDING * magnitude

    def _norms(self, rows: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor]:
        """(rows,) float64, at least: the norm of each row in bfloat16, and that of what it is off by."""
        norms, off = [], []
        for exact, rounded in in_blocks(rows, narrow):
            wide = rounded[:, : self._width].float()
            norms.append(torch.linalg.vector_norm(wide, dim=1))
            off.append(torch.linalg.vector_norm(wide.sub_(exact), dim=1))
        return self._at_least(torch.cat(norms)), self._at_least(torch.cat(off))

    def _at_least(self, norm: Tensor) -> Tensor:
        return norm.double() * (1 + (self._width + 8) * _ROUNDING) + self._width**0.5 * 2.0**-62


def narrowed_rows(rows: Tensor, height: int, multiple: int = 32) -> Tensor:
    """(height, more than d) bfloat16: rows (m, d) rounded, 0 in what is left.

    The width is the next multiple of `multiple` above d. The first column that is left can hold 1 in every token and
    the biases in the features. For a product that adds biases itself writes them to memory first, which costs a CPU a
    third of it.
    """
    n_rows, width = rows.shape
    narrow = rows.new_empty(height, width + multiple - width % multiple, dtype=torch.bfloat16)
    narrow[:n_rows, :width] = rows
    narrow[:, width:] = 0
    narrow[n_rows:] = 0
    return narrow
