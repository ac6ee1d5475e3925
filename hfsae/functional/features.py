"""`SparseFeatures`: the active features of some activations, without anything of size tokens × n_features."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfsae.functional.patterns import DensePattern, Pattern, SparsePattern
from hfsae.notebook import html_table

# Tokens, and the strongest features of each, that a notebook shows.
_SHOWN_TOKENS, _SHOWN_FEATURES = 20, 5


class TopFeatures(NamedTuple):
    """The strongest features of every token, strongest first: the farthest from 0, where values may be negative.

    Attributes:
        values: (..., k); 0 where a token has fewer active features.
        indices: int64 (..., k); 0 there.
    """

    values: Tensor
    indices: Tensor


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
        >>> f.topk(1).indices
        tensor([[3]])
        >>> f[0], f.of(3)
        (SparseFeatures(shape=(5,), active=1), tensor([2.]))
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

    # -- parts of it --------------------------------------------------------------------------------------------------
    def topk(self, k: int) -> TopFeatures:
        """The k strongest features of every token: those farthest from 0, with their signs.

        Args:
            k: How many.

        Raises:
            ValueError: If k is not positive.
        """
        if k < 1:
            raise ValueError(f"k must be positive, got {k}.")
        values, indices = self._padded
        found = min(k, values.shape[-1])
        order = values.abs().masked_fill(values == 0, -torch.inf).topk(found, dim=-1).indices
        missing = (0, k - found)
        return TopFeatures(
            torch.nn.functional.pad(values.gather(-1, order), missing),
            torch.nn.functional.pad(indices.gather(-1, order), missing),
        )

    def of(self, features: int | Sequence[int] | Tensor) -> Tensor:
        """The values of one feature at every token (...), or of several (..., n); 0 where one is not active.

        Args:
            features: One index, or several.

        Raises:
            IndexError: If there is no such feature.
            TypeError: If they are no whole numbers, such as a mask.
        """
        wanted = torch.as_tensor(features, device=self.device)
        if wanted.numel() and (wanted.is_floating_point() or wanted.dtype == torch.bool):
            raise TypeError(f"features are {wanted.dtype}, expected whole numbers: of a mask, mask.nonzero()[:, 0].")
        wanted = wanted.long()
        if wanted.numel() and not -self.n_features <= int(wanted.min()) <= int(wanted.max()) < self.n_features:
            raise IndexError(f"there are features 0 to {self.n_features - 1}, got {wanted.tolist()}.")
        rows = [self._of_one(int(feature)) for feature in wanted.remainder(self.n_features).reshape(-1)]
        if not rows:
            return self.entry_values.new_zeros(*self.leading_shape, 0)
        return rows[0] if wanted.ndim == 0 else torch.stack(rows, dim=-1)

    def among(self, features: Tensor) -> "SparseFeatures":
        """The entries of some features alone; the width stays.

        Args:
            features: int64 (n,), their indices.
        """
        if not isinstance(self.pattern, SparsePattern):
            return SparseFeatures.from_dense(self.to_dense()).among(features)
        is_wanted = torch.zeros(self.n_features, dtype=torch.bool, device=self.device)
        is_wanted[features.to(self.device)] = True
        kept = is_wanted[self.pattern.features].nonzero()[:, 0]
        per_token = torch.bincount(self.pattern.tokens[kept], minlength=self.pattern.n_tokens)
        pattern = SparsePattern(self.pattern.features[kept], per_token, self.n_features)
        return SparseFeatures(pattern, self.entry_values[kept], self.leading_shape)

    def _of_one(self, feature: int) -> Tensor:
        values, indices = self._padded
        return values.masked_fill(indices != feature, 0).sum(-1)

    def __len__(self) -> int:
        if not self.leading_shape:
            raise TypeError("these are the features of one token, which has no length.")
        return self.leading_shape[0]

    def __iter__(self) -> Iterator["SparseFeatures"]:
        return (self[token] for token in range(len(self)))

    def __getitem__(self, tokens: Any) -> "SparseFeatures":
        """The features of some tokens: `f[0]`, `f[0, -1]`, `f[:, 1:]`, `f[keep]`, as the activations are indexed.

        Raises:
            IndexError: If there is no such token, or the index goes on to features: their values are `f.of(17)`.
        """
        grid = torch.arange(self.pattern.n_tokens, device=self.device).reshape(self.leading_shape)
        try:
            chosen = grid[tokens]
        except IndexError as error:
            raise IndexError(
                f"{error}. An index picks tokens of shape {tuple(self.leading_shape)}; the values of features at "
                "them are features.of(17)."
            ) from error
        pattern, values = self._entries_of(chosen.reshape(-1))
        return SparseFeatures(pattern, values, chosen.shape)

    def _entries_of(self, tokens: Tensor) -> tuple[Pattern, Tensor]:
        """The entries of tokens (n,) in their order, as a pattern of n tokens, and their values."""
        if not isinstance(self.pattern, SparsePattern):
            values = self.pattern.to_dense(self.entry_values)[tokens]
            return DensePattern.from_mask(values.detach() != 0), values
        per_token = self.pattern.per_token[tokens]
        moved = self.pattern.offsets[tokens] - (per_token.cumsum(0) - per_token)
        entries = torch.repeat_interleave(moved, per_token)
        entries = entries + torch.arange(len(entries), device=entries.device)
        return SparsePattern(self.pattern.features[entries], per_token, self.n_features), self.entry_values[entries]

    # -- elsewhere ----------------------------------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        """Where the values lie."""
        return self.entry_values.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.entry_values.dtype

    def to(self, *args: Any, **kwargs: Any) -> "SparseFeatures":
        """The same features on another device, or with values of another dtype; arguments as of `Tensor.to`."""
        values = self.entry_values.to(*args, **kwargs)
        pattern = self.pattern
        if values.device != self.device:
            if isinstance(pattern, SparsePattern):
                features, per_token = pattern.features.to(values.device), pattern.per_token.to(values.device)
                pattern = SparsePattern(features, per_token, self.n_features)
            else:
                pattern = DensePattern.from_mask(values.detach() != 0)
        return SparseFeatures(pattern, values, self.leading_shape)

    def cpu(self) -> "SparseFeatures":
        """The same features in main memory."""
        return self.to("cpu")

    def detach(self) -> "SparseFeatures":
        """The same features without a gradient."""
        return SparseFeatures(self.pattern, self.entry_values.detach(), self.leading_shape)

    def numpy(self) -> Any:
        """The dense features (..., n_features) as a numpy array; float32 where numpy has no such type (bfloat16)."""
        dense = self.to_dense().detach().cpu()
        return (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()

    # -- shown --------------------------------------------------------------------------------------------------------
    def __repr__(self) -> str:
        return f"SparseFeatures(shape={tuple(self.shape)}, active={int(torch.count_nonzero(self.entry_values))})"

    def _repr_html_(self) -> str:
        """A row a token, with its strongest features and their values."""
        n_tokens = self.pattern.n_tokens
        flat = SparseFeatures(self.pattern, self.entry_values.detach(), torch.Size([n_tokens]))
        top = flat[:_SHOWN_TOKENS].topk(_SHOWN_FEATURES)
        places = product(*map(range, self.leading_shape))
        rows = [
            [
                ", ".join(map(str, place)),
                *(f"{i}: {value:.4g}" if value else "" for value, i in zip(*one, strict=True)),
            ]
            for place, *one in zip(places, top.values.tolist(), top.indices.tolist(), strict=False)
        ]
        left = n_tokens - len(rows)
        return html_table(
            rows,
            header=["token", "strongest", *("" for _ in range(1, _SHOWN_FEATURES))],
            caption=repr(self),
            note=f"… and {left:,} more tokens" if left > 0 else "",
        )


def refuse_other_features(features: object, shape: tuple[int, ...]) -> None:
    """Refuses what is not the features that are meant, before it is taken for them.

    Args:
        features: Dense or sparse features.
        shape: The shape that they must have, or the end of it.

    Raises:
        TypeError: If they are no features.
        ValueError: If their shape is another one.
    """
    if not isinstance(features, Tensor | SparseFeatures):
        raise TypeError(f"features must be a tensor or what encode_sparse returned, got {type(features).__name__}.")
    if tuple(features.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"features must have the shape (..., {', '.join(map(str, shape))}), got {tuple(features.shape)}."
        )
