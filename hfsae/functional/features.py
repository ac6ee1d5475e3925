"""`SparseFeatures`: the active features of some activations, without anything of size tokens × n_features."""

from functools import cached_property

import torch
from torch import Tensor

from hfsae.functional.patterns import Pattern, SparsePattern


class SparseFeatures:
    """Active features and their values for activations of any leading shape.

    Args:
        pattern: The entries, over the flattened tokens.
        entry_values: One value per entry, as the pattern stores them.
        leading_shape: The activations' shape without `d_in`; its product is the number of tokens.

    Example:
        >>> import torch
        >>> from hfsae.functional import SparseFeatures
        >>> f = SparseFeatures.from_padded(torch.tensor([[2.0, 0.0]]), torch.tensor([[3, 0]]), n_features=5)
        >>> f.to_dense()
        tensor([[0., 0., 0., 2., 0.]])
    """

    def __init__(self, pattern: Pattern, entry_values: Tensor, leading_shape: torch.Size):
        self.pattern = pattern
        self.entry_values = entry_values
        self.leading_shape = leading_shape

    @classmethod
    def from_padded(cls, values: Tensor, indices: Tensor, n_features: int) -> "SparseFeatures":
        """From `values` and `indices` of shape (..., K); indices of one token must differ where values are not 0."""
        leading = values.shape[:-1]
        rows = values.reshape(leading.numel(), values.shape[-1])
        active = rows.detach() != 0  # padding would be a second entry for feature 0
        features = indices.reshape(rows.shape)[active].long()
        return cls(SparsePattern(features, active.sum(1), n_features), rows[active], leading)

    @classmethod
    def from_dense(cls, features: Tensor) -> "SparseFeatures":
        """From dense features (..., n_features)."""
        flat = features.reshape(-1, features.shape[-1])
        pattern = SparsePattern.from_mask(flat != 0)
        return cls(pattern, flat[pattern.tokens, pattern.features], features.shape[:-1])

    @property
    def n_features(self) -> int:
        return self.pattern.n_features

    @property
    def shape(self) -> torch.Size:
        """The shape the dense features would have: (..., n_features)."""
        return torch.Size((*self.leading_shape, self.n_features))

    @cached_property
    def _padded(self) -> tuple[Tensor, Tensor]:
        values, indices = self.pattern.padded(self.entry_values)
        return self._unflatten(values), self._unflatten(indices)

    def _unflatten(self, rows: Tensor) -> Tensor:
        return rows.reshape(*self.leading_shape, rows.shape[-1])

    @property
    def values(self) -> Tensor:
        """(..., K) non-zero values, K the largest count of any token, padded with 0."""
        return self._padded[0]

    @property
    def indices(self) -> Tensor:
        """(..., K) the feature of each value, padded with 0."""
        return self._padded[1]

    def to_dense(self) -> Tensor:
        """The same features as a dense tensor (..., n_features)."""
        return self._unflatten(self.pattern.to_dense(self.entry_values))

    def decode(self, rows: Tensor) -> Tensor:
        """Σ value × rows[feature] for every token: (..., d) from rows (n_features, d)."""
        return self._unflatten(self.pattern.decode(self.entry_values.to(rows.dtype), rows))

    def tokens_firing(self) -> Tensor:
        """On how many tokens each feature is active: (n_features,) int64."""
        return self.pattern.tokens_firing(self.entry_values)

    def __repr__(self) -> str:
        return f"SparseFeatures(shape={tuple(self.shape)}, active={int(torch.count_nonzero(self.entry_values))})"
