"""Histograms of values whose range nobody knows before: bins that double in width when a larger value comes."""

import torch
from torch import Tensor


class Histograms:
    """One histogram a feature, of positive values: equal bins from 0 to the power of two above the largest.

    Where a value exceeds the range, neighbouring bins are added and the range doubles, so every count is exact in any
    order of the values.

    Args:
        n_features: Number of features.
        n_bins: Bins, an even number.

    Attributes:
        counts: int64 (n_features, n_bins).
        exponents: int64 (n_features,), the range ends at 2 to this power.
    """

    def __init__(self, n_features: int, n_bins: int):
        if n_bins < 2 or n_bins % 2:
            raise ValueError(f"n_bins must be even and positive, got {n_bins}.")
        self.counts = torch.zeros(n_features, n_bins, dtype=torch.int64)
        self.exponents = torch.full((n_features,), _LOWEST)

    def add(self, features: Tensor, values: Tensor) -> None:
        """Counts values.

        Args:
            features: int64 (entries,).
            values: float32 (entries,), positive.
        """
        needed = torch.frexp(values).exponent.long()  # value = mantissa · 2^exponent with a mantissa below 1
        reached = self.exponents.clone().scatter_reduce_(0, features, needed, "amax")
        self._widen(reached)
        n_bins = self.counts.shape[1]
        bins_per_unit = torch.ldexp(torch.full((len(self.counts),), n_bins, dtype=torch.float64), -self.exponents)
        bins = (values.double() * bins_per_unit.index_select(0, features)).long()
        ones = torch.ones((), dtype=torch.int64).expand(len(bins))
        self.counts.view(-1).index_add_(0, features * n_bins + bins, ones)

    def merge(self, counts: Tensor, exponents: Tensor) -> None:
        """Adds the counts of other histograms of the same features."""
        other = Histograms(*self.counts.shape)
        other.counts, other.exponents = counts.clone(), exponents.clone()
        reached = torch.maximum(self.exponents, exponents)
        self._widen(reached)
        other._widen(reached)
        self.counts += other.counts

    def _widen(self, exponents: Tensor) -> None:
        """Brings each range to its new end."""
        n_bins = self.counts.shape[1]
        steps = exponents - self.exponents
        growing = (steps > 0).nonzero().squeeze(1)
        if len(growing):
            bins = torch.arange(n_bins) >> steps[growing, None].clamp(max=62)
            self.counts[growing] = torch.zeros_like(self.counts[growing]).scatter_add_(1, bins, self.counts[growing])
        self.exponents = exponents


# Below the exponent of the smallest float32.
_LOWEST = -200
