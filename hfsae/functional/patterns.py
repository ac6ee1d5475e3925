"""Which features are active on which tokens, and the products that only touch those.

A pattern lists *entries*: (token, feature) pairs. A training objective computes one value per entry. It asks the
pattern for everything that crosses between tokens and features, so the same objective runs on either pattern:

* `SparsePattern` keeps the entries in token-major order, values of shape (entries,). Every product costs
  `2 · entries · d` instead of `2 · N · n · d`.
* `DensePattern` keeps all N × n of them, values of shape (N, n), with a mask: right while much is active.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae.functional.blocks import in_blocks
from hfsae.functional.kernels import serves
from hfsae.functional.precision import at_least_float32, narrowed

if TYPE_CHECKING:
    from hfsae.functional.kernels.products import Parts

# Said once per process by torch, of the CSR products used here since 2021; of no use to whoever trains an SAE.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


# Products leave zeros out where no more than this share of the values is anything else.
_WORTH_LEAVING_OUT = 0.75


class Pattern(Protocol):
    """What an objective may ask of the entries, however they are stored. N tokens, n features."""

    n_tokens: int
    n_features: int

    def gather(self, parameter: Tensor) -> Tensor:
        """A per-feature parameter (n,) at each entry, in a shape that broadcasts against the entries' values."""
        ...

    def keep(self, values: Tensor) -> Tensor:
        """The values with 0 at every pair that is not an entry."""
        ...

    def decode(self, values: Tensor, rows: Tensor) -> Tensor:
        """Σ over a token's entries of value × row: (N, d) from rows (n, d). Differentiable in both."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """Σ over tokens of each feature's values, which are 0 where there is no entry: (n,) at least float32.

        Differentiable. A sum over entries that weighs features reads (n,) weights afterwards, instead of (N, n).
        """
        ...

    def blocks(self, values: Tensor, sizes: Sequence[int]) -> "list[tuple[Pattern, Tensor]]":
        """The entries of consecutive blocks of so many features, each block a pattern of its own, and their values."""
        ...

    def tokens_firing(self, values: Tensor) -> Tensor:
        """On how many tokens each feature's value is not 0: (n,) int64."""
        ...

    def padded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Non-zero values and their features as (N, K), K the largest count; padding is value 0 at feature 0."""
        ...

    def to_dense(self, values: Tensor) -> Tensor:
        """The values as (N, n)."""
        ...


class DensePattern:
    """All N × n pairs; the entries are the pairs that a rule picks.

    Args:
        pre: (N, n).
        rule: Gives (N, n) bool from them; asked once, where an objective has to know.
    """

    def __init__(self, pre: Tensor, rule: Callable[[Tensor], Tensor]):
        self.n_tokens, self.n_features = pre.shape
        self._pre, self._rule = pre, rule
        self._mask: Tensor | None = None

    @classmethod
    def from_mask(cls, mask: Tensor) -> "DensePattern":
        """The entries where `mask` (N, n) is True."""
        return cls(mask, torch.Tensor.bool)

    @property
    def mask(self) -> Tensor:
        """(N, n) bool, True at entries."""
        if self._mask is None:  # no cached_property: export cannot look into its lock
            self._mask = self._rule(self._pre)
        return self._mask

    def gather(self, parameter: Tensor) -> Tensor:
        return parameter

    def keep(self, values: Tensor) -> Tensor:
        return values * self.mask

    def decode(self, values: Tensor, rows: Tensor) -> Tensor:
        return values @ rows

    def total(self, values: Tensor) -> Tensor:
        return at_least_float32(values).sum(0)

    def blocks(self, values: Tensor, sizes: Sequence[int]) -> list[tuple[Pattern, Tensor]]:
        masks = self.mask.split(list(sizes), dim=1)
        return [(DensePattern.from_mask(m), v) for m, v in zip(masks, values.split(list(sizes), dim=1), strict=True)]

    def tokens_firing(self, values: Tensor) -> Tensor:
        return _count_by_column(values.detach())

    def padded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        active = values.detach() != 0
        per_token = active.sum(1)
        features = active.nonzero()[:, 1]
        return _pad(values[active], features, per_token)

    def to_dense(self, values: Tensor) -> Tensor:
        return values


class SparsePattern:
    """Entries in token-major order.

    Args:
        features: (entries,) int64, the feature of each entry; entries of one token stand together, tokens in order.
        per_token: (N,) int64, how many entries each token has.
        n_features: Width n of the SAE.
        each: How many entries every token has, where that is known without asking a device; else 0.
    """

    def __init__(self, features: Tensor, per_token: Tensor, n_features: int, each: int = 0):
        self.features = features
        self.per_token = per_token
        self.n_tokens = per_token.shape[0]
        self.n_features = n_features
        self.each = each
        # What `without_zeros` left last, and its pattern: a step asks for the same once forward and once backward.
        self._last_left: tuple[Tensor, SparsePattern] | None = None

    @classmethod
    def as_many_each(cls, features: Tensor, n_features: int) -> "SparsePattern":
        """From the features (N, K) of tokens that have as many each."""
        n_tokens, each = features.shape
        per_token = torch.full((n_tokens,), each, device=features.device)
        return cls(features.flatten(), per_token, n_features, each)

    @classmethod
    def from_mask(cls, mask: Tensor) -> "SparsePattern":
        """The entries where `mask` (N, n) is True."""
        tokens, features = mask.nonzero(as_tuple=True)
        return cls(features, torch.bincount(tokens, minlength=mask.shape[0]), mask.shape[1])

    @cached_property
    def tokens(self) -> Tensor:
        """(entries,): the token of each entry."""
        positions = torch.arange(self.n_tokens, device=self.features.device)
        return torch.repeat_interleave(positions, self.per_token, output_size=len(self.features))

    @cached_property
    def offsets(self) -> Tensor:
        """(N + 1,): token t's entries are `offsets[t]:offsets[t + 1]`."""
        return F.pad(self.per_token.cumsum(0), (1, 0))

    @cached_property
    def _feature_major(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entry order, token of each entry in it, and feature offsets: one sort serves every weight gradient."""
        # Sorted digit by digit: half the digits, half the time.
        narrow = torch.int16 if self.n_features <= torch.iinfo(torch.int16).max else torch.int32
        ordered, order = torch.sort(self.features.to(narrow), stable=True)
        bounds = torch.arange(self.n_features + 1, device=ordered.device, dtype=ordered.dtype)
        offsets = torch.searchsorted(ordered, bounds)
        return order, self.tokens.index_select(0, order), offsets

    @cached_property
    def _feature_parts(self) -> "Parts":
        """The features' entries, shared out among the programs of a kernel; serves both weight gradients."""
        from hfsae.functional.kernels.products import cut

        return cut(self._feature_major[2], len(self.features))

    def without_zeros(self, values: Tensor) -> tuple["SparsePattern", Tensor]:
        """The entries whose value is not 0, where leaving the others out of products pays; else all of them.

        A JumpReLU's pattern holds what is within reach of a threshold too, most of which is not active. On CUDA
        counting would wait for the device.
        """
        if values.device.type != "cpu":
            return self, values
        active = (values != 0).nonzero()[:, 0]
        if len(active) > _WORTH_LEAVING_OUT * len(values):
            return self, values
        if self._last_left is None or not torch.equal(self._last_left[0], active):
            per_token = torch.bincount(self.tokens.index_select(0, active), minlength=self.n_tokens)
            pattern = SparsePattern(self.features.index_select(0, active), per_token, self.n_features)
            self._last_left = active, pattern
        return self._last_left[1], values.index_select(0, active)

    # -- products, without autograd --------------------------------------------------------------------------------
    # On CUDA by Triton, which reads narrow floats and sums in float32. Else in float32 at least: on a CPU torch's CSR
    # products know nothing narrower.
    def token_sum(self, values: Tensor, rows: Tensor) -> Tensor:
        """(N, d): for each token Σ value × rows[feature]."""
        if serves(values, rows):
            from hfsae.functional.kernels.products import sum_rows

            return sum_rows(values, self.features, self.offsets, rows)
        return _sum_of_rows(values, self.features, self.offsets, rows)

    def feature_sum(self, values: Tensor, tokens: Tensor) -> Tensor:
        """(n, d): for each feature Σ value × tokens[token]; `tokens` is (N, d)."""
        order, token_of, offsets = self._feature_major
        if serves(values, tokens):
            from hfsae.functional.kernels.products import sum_long_rows

            return sum_long_rows(values[order], token_of, self._feature_parts, tokens)
        return _sum_of_rows(values.index_select(0, order), token_of, offsets, tokens)

    def feature_total(self, values: Tensor) -> Tensor:
        """(n,): for each feature the sum of its entries' values."""
        if serves(values):
            from hfsae.functional.kernels.products import sum_values

            order, _, offsets = self._feature_major
            return sum_values(values[order], offsets).to(values.dtype)
        wide = at_least_float32(values)
        return wide.new_zeros(self.n_features).index_add_(0, self.features, wide).to(values.dtype)

    def sampled_product(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """(entries,) at least float32: ⟨tokens[token], rows[feature]⟩ for each entry, without the N × n product."""
        if serves(tokens, rows):
            from hfsae.functional.kernels.products import inner_products

            return inner_products(self.features, self.offsets, tokens, rows)
        # Feature by feature, so that it is the smaller table that is read in no order (d = 768, n = 12288, N = 4096,
        # 130 entries a token: 57 ms, token by token 105).
        order, token_of, offsets = self._feature_major
        wide, wide_rows = at_least_float32(tokens), at_least_float32(rows).contiguous()
        pattern = torch.sparse_csr_tensor(
            offsets,
            token_of,
            wide.new_zeros(len(order)),
            (self.n_features, self.n_tokens),
            check_invariants=False,
        )
        products = torch.sparse.sampled_addmm(pattern, wide_rows, wide.T, beta=0.0).values()
        return torch.empty_like(products).index_copy_(0, order, products)

    # -- what objectives use ---------------------------------------------------------------------------------------
    def gather(self, parameter: Tensor) -> Tensor:
        return _Gather.apply(parameter, self)  # type: ignore[return-value]

    def keep(self, values: Tensor) -> Tensor:
        return values

    def decode(self, values: Tensor, rows: Tensor) -> Tensor:
        return _Decode.apply(values, rows, self)  # type: ignore[return-value]

    def total(self, values: Tensor) -> Tensor:
        return _Total.apply(values, self)  # type: ignore[return-value]

    def blocks(self, values: Tensor, sizes: Sequence[int]) -> list[tuple[Pattern, Tensor]]:
        ends = torch.tensor(list(sizes), device=self.features.device).cumsum(0)
        block_of = torch.bucketize(self.features, ends, right=True)
        found: list[tuple[Pattern, Tensor]] = []
        for block, (size, end) in enumerate(zip(sizes, accumulate(sizes), strict=True)):
            chosen = (block_of == block).nonzero()[:, 0]
            per_token = torch.bincount(self.tokens[chosen], minlength=self.n_tokens)
            pattern = SparsePattern(self.features[chosen] - (end - size), per_token, size)
            found.append((pattern, values.index_select(0, chosen)))
        return found

    def tokens_firing(self, values: Tensor) -> Tensor:
        if serves(values):  # counted without asking the device how many there are
            return self.feature_total((values.detach() != 0).float()).long()
        fired = self.features[values.detach() != 0]
        return torch.bincount(fired, minlength=self.n_features)

    def padded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        active = values.detach() != 0
        per_token = torch.bincount(self.tokens[active], minlength=self.n_tokens)
        return _pad(values[active], self.features[active], per_token)

    def to_dense(self, values: Tensor) -> Tensor:
        dense = values.new_zeros(self.n_tokens, self.n_features)
        return dense.index_put((self.tokens, self.features), values)


def _sum_of_rows(values: Tensor, indices: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """Σ value × table[index] of each segment of entries, in the type of the table.

    torch's product of a CSR matrix does the same in two to four times the time where features are of unequal
    frequency (d = 768, N = 4096, n = 12288, 130 entries a token: 40 ms for the gradient of a weight, not 110).
    """
    if not len(values):
        return table.new_zeros(len(offsets) - 1, table.shape[1])
    wide = at_least_float32(table)
    weights = values.to(wide.dtype)
    summed = F.embedding_bag(indices, wide, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
    return summed.to(table.dtype)


def _count_by_column(values: Tensor) -> Tensor:
    """How many values (N, n) of each column are not 0: (n,) int64.

    Eight columns at a time where they fit: of at most 255 rows the bytes of an integer sum add up without a carry.
    Summing flags one by one takes a CPU a hundred times as long, a third of an encoder product.
    """
    if values.shape[1] % 8 or values.device.type != "cpu":
        return (values != 0).sum(0)
    total = torch.zeros(values.shape[1], dtype=torch.int64)
    for (rows,) in in_blocks(values.contiguous(), most_rows=255):
        total += (rows != 0).view(torch.int64).sum(0).view(torch.uint8)
    return total


def _pad(values: Tensor, features: Tensor, per_token: Tensor) -> tuple[Tensor, Tensor]:
    n_tokens = per_token.shape[0]
    width = int(per_token.max()) if n_tokens else 0
    tokens = torch.repeat_interleave(torch.arange(n_tokens, device=values.device), per_token)
    start = F.pad(per_token.cumsum(0), (1, 0))[:-1]
    column = torch.arange(len(values), device=values.device) - start[tokens]
    padded_values = values.new_zeros(n_tokens, width).index_put((tokens, column), values)
    padded_features = features.new_zeros(n_tokens, width).index_put((tokens, column), features)
    return padded_values, padded_features


class _Gather(torch.autograd.Function):
    """`parameter[features]`, whose backward adds up in one pass instead of through a general scatter."""

    @staticmethod
    def forward(ctx, parameter: Tensor, pattern: SparsePattern) -> Tensor:
        ctx.pattern = pattern
        return parameter.index_select(0, pattern.features)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return ctx.pattern.feature_total(grad), None


class _Total(torch.autograd.Function):
    """Each feature's sum over its entries; its gradient goes back to all of them."""

    @staticmethod
    def forward(ctx, values: Tensor, pattern: SparsePattern) -> Tensor:
        ctx.pattern, ctx.dtype = pattern, values.dtype
        return pattern.feature_total(at_least_float32(values))

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad.index_select(0, ctx.pattern.features).to(ctx.dtype), None


class _Decode(torch.autograd.Function):
    """The sparse decoder product and its two gradients; saves nothing larger than its inputs."""

    @staticmethod
    def forward(ctx, values: Tensor, rows: Tensor, pattern: SparsePattern) -> Tensor:
        ctx.pattern = pattern
        ctx.active, kept = pattern.without_zeros(values)
        # On CUDA the sparse products read what dense ones would read under autocast: half the bytes of float32 rows.
        read = narrowed(rows) if serves(rows) else rows
        ctx.save_for_backward(kept, read)
        ctx.dtypes = values.dtype, rows.dtype
        return ctx.active.token_sum(kept, read)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        kept, read = ctx.saved_tensors
        needs_values, needs_rows, _ = ctx.needs_input_grad
        values_dtype, rows_dtype = ctx.dtypes
        grad = grad.to(read.dtype).contiguous()
        grad_values = ctx.pattern.sampled_product(grad, read).to(values_dtype) if needs_values else None
        grad_rows = ctx.active.feature_sum(kept, grad).to(rows_dtype) if needs_rows else None
        return grad_values, grad_rows, None
