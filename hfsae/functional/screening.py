"""Exact selection at the price of a bfloat16 product: low precision screens, float32 decides.

On a CPU with bfloat16 units a product in bfloat16 costs a fifth of one in float32. What it gets wrong is bounded, so
all that may be selected lies above a cut. Only those few are computed in float32, and they alone decide. The result is
that of float32 throughout.

The bound is that of `hfsae.functional.rounding`: h̃ − 2⁻⁸|h̃| − ε ≤ h̄ ≤ h̃ + 2⁻⁸|h̃| + ε for the bfloat16 number h̃
and the float32 number h̄ that decides.

Selection by comparison: if k features have h̃ ≥ v > 0, the k-th largest h̄ is at least (1 − 2⁻⁸)v − ε. A feature may
only be among the k largest if (1 + 2⁻⁸)h̃ + ε reaches that.

A constant is added to all biases, so that everything that matters is above 0. There bfloat16 numbers compare as the
whole numbers of their bits do. Some rows are computed in float32, because nothing can be said of them this way. They
hold NaN, infinities or numbers so large that sums might overflow, or their bound lets too much through.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hfsae.functional.entries import Entries, Grouped
from hfsae.functional.patterns import SparsePattern
from hfsae.functional.rounding import FLUSHED, HALF_PLACE, LARGEST, ProductError, narrowed_rows

# Features are filled up to a multiple of so many by some that are never active.
_MULTIPLE = 64
# A token of whose features a larger share may be selected is cheaper in float32.
_MOST_PASSING = 1 / 16
# Tokens a chunk: each reads the weights again, and what it makes is the largest thing of a step (d = 768, n = 12288:
# 1,024 tokens a chunk take no longer than 2,048, and a step of 4,096 tokens peaks at 106 MB instead of 128).
_TOKENS = 1024
# A token's k-th largest is bounded from so many groups of features for each that is wanted (AMD Zen 4, one thread,
# 4096 × 128 × 12288, k = 32: 8 of them 149 ms, 4 of them 143, 3 of them 150).
_GROUPS_PER_K = 4
# Smaller products are not worth the looking, nor is it where more is active: what is computed again costs too much
# then. Selection of the 32 largest with and without, an Intel CPU with AMX, one thread, tokens × width × features:
# 512 × 128 × 4096 takes 1.36 times as long, 1024 × 256 × 4096 0.77, 4096 × 128 × 2048 0.90, 4096 × 128 × 4096 0.65,
# 4096 × 64 × 12288 0.41, 4096 × 768 × 12288 0.38; with 1/96 active there 0.81, with 1/48 1.29.
_LEAST_WIDTH, _LEAST_FEATURES, _LEAST_TOKENS = 64, 4096, 1024
_MOST_ACTIVE = 1 / 80


@cache
def has_bfloat16_units() -> bool:
    """Whether this CPU multiplies in bfloat16 at least twice as fast as in float32, and torch lets it.

    AMX does; so do AMD's `avx512_bf16` units (Zen 4: 0.45 of the time). Intel's are no faster than its float32 ones
    (4096 × 768 × 12288, one thread: 0.79 s, AMX 0.09, float32 0.41). What they say decides, not a stopwatch: a run
    that is resumed has to go the same way again.
    """
    able = _capabilities()
    amd = able.get("avx512_bf16", False) and "AMD" in str(able.get("cpu_name", ""))
    amd = amd and _allowed("AVX512_CORE_BF16", "FP16", "AMX", "AVX10")
    return bool(
        (amd or _has_amx()) and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _capabilities() -> Mapping[str, Any]:
    """What torch says of this CPU."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    return {"amx_bf16": torch.cpu._is_amx_tile_supported()}  # torch before 2.10


def _has_amx() -> bool:
    return bool(_capabilities().get("amx_bf16", False) and torch.cpu._init_amx() and _allowed("AMX"))


def _width_multiple() -> int:
    """Rows of a product are filled up to a multiple of so many numbers.

    AMX multiplies 32 at a time whatever the width. Other units multiply two (AMD Zen 4, one thread, 4096 tokens ×
    12288 features, d = 128 and the biases: width 136 takes 77 ms, 160 takes 89).
    """
    return 32 if _has_amx() else 8


def _allowed(*names: str) -> bool:
    """Whether oneDNN's own setting lets it use instructions of one of these names, or all."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    return allowed in ("DEFAULT", "ALL") or any(name in allowed for name in names)


def pays(x: Tensor, weight: Tensor, load: Callable[[], float]) -> bool:
    """Whether a selection from these tokens and features is to be screened.

    Args:
        x: (N, d).
        weight: (n, d).
        load: Gives the number of entries a token.
    """
    if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or not has_bfloat16_units():
        return False
    (n_tokens, width), n_features = x.shape, len(weight)
    large = width >= _LEAST_WIDTH and n_features >= _LEAST_FEATURES and n_tokens >= _LEAST_TOKENS
    return large and load() <= n_features * _MOST_ACTIVE


@dataclass
class Candidates:
    """What may be selected of some tokens, tokens in order, with its bfloat16 numbers and how far off those may be."""

    tokens: Tensor
    features: Tensor
    screened: Tensor
    error: Tensor

    @property
    def lower(self) -> Tensor:
        """What the float32 values are at least."""
        return _lower(self.screened, self.error)

    @property
    def upper(self) -> Tensor:
        """What they are at most."""
        return self.screened.double() * (1 + HALF_PLACE) + self.error

    def kept(self, keep: Tensor) -> "Candidates":
        """The candidates that a mask keeps."""
        place = keep.nonzero()[:, 0]
        return Candidates(*(part.index_select(0, place) for part in vars(self).values()))

    @classmethod
    def joined(cls, parts: "list[Candidates]") -> "Candidates":
        """Those of chunks, one after the other."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


class Chunk:
    """Some tokens' numbers in bfloat16, raised by a constant, and how far off each token's may be.

    Args:
        first: The first token's place in the batch.
        made: (tokens, n) bfloat16.
        error: (tokens,) float64; NaN or infinite where nothing is known.
        raised_by: The constant.
    """

    def __init__(self, first: int, made: Tensor, error: Tensor, raised_by: float):
        self.first, self.made, self.raised_by = first, made, raised_by
        self._error = error
        self._grouped = Grouped(made)

    def k_th(self, k: int) -> Tensor:
        """(tokens,) float64: each token's k-th largest float32 value, raised, is at least this."""
        bound = self._grouped.k_th(k, _GROUPS_PER_K * k)
        return torch.full_like(self._error, -math.inf) if bound is None else _lower(bound, self._error)

    def reaching(self, level: Tensor | float) -> tuple[Candidates, Tensor]:
        """The entries whose float32 values, raised, may be at least a level.

        Args:
            level: A number, or (tokens,) float64.

        Returns:
            The entries, and (tokens,) bool, of which tokens they are; the others have to be looked at in float32.
        """
        cut = (level - self._error) / (1 + HALF_PLACE)
        certain = (cut > 2 * FLUSHED) & (cut < LARGEST)  # False for NaN
        narrow = cut.bfloat16()
        bits = narrow.view(torch.int16) - (narrow.double() > cut).short()
        most = max(1, int(_MOST_PASSING * self.made.shape[1]))
        cuts = torch.where(certain, bits, torch.iinfo(torch.int16).max).view(torch.bfloat16)
        groups = self._grouped.reaching(cuts)
        found = self._grouped.members(groups, cuts, most * len(cut))
        if found is None:
            certain &= torch.count_nonzero(groups, dim=1) <= most
            found = self._grouped.members(groups & certain[:, None], cuts, groups.numel())
        assert found is not None
        tokens, features, screened = found
        certain &= torch.bincount(tokens, minlength=len(cut)) <= most
        candidates = Candidates(tokens, features, screened, self._error.index_select(0, tokens))
        if not certain.all():  # of the others there may be some all the same, NaN among them
            candidates = candidates.kept(certain.index_select(0, tokens))
        candidates.tokens += self.first
        return candidates, certain


class Screen:
    """The float32 pre-activations of a batch, first seen in bfloat16.

    Args:
        x: (N, d) float32, N at least 1.
        weight: (n, d) float32.
        bias: (n,) float32.
        in_float32: Gives the float32 pre-activations of some tokens (m, d), chunk by chunk.
    """

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, in_float32: Callable[[Tensor], Iterator[Tensor]]):
        self.x, self._weight, self._bias = x, weight, bias
        self._in_float32 = in_float32
        self.n_features, self._width = weight.shape
        multiple = _width_multiple()
        self._narrow_x = narrowed_rows(x, len(x), multiple)
        self._narrow_x[:, self._width] = 1.0
        self._narrow_weight = narrowed_rows(weight, self.n_features + -self.n_features % _MULTIPLE, multiple)
        error = ProductError(x, self._narrow_x, weight, self._narrow_weight)
        self._reach, self._off, self._sums_off = error.reach, error.off, error.sums_off

    def chunks(self, above: Tensor | float = 0.0) -> Iterator[Chunk]:
        """The pre-activations less `above` in bfloat16, each chunk in the memory of the one before.

        Args:
            above: A number, or (n,) one for each feature.
        """
        bias, error, raised_by = self._raised(above)
        self._narrow_weight[:, self._width] = bias
        made = self._narrow_x.new_empty(min(_TOKENS, len(self.x)), len(bias))
        parts = math.ceil(len(self.x) / _TOKENS)
        first = 0
        for rows, off in zip(self._narrow_x.tensor_split(parts), error.tensor_split(parts), strict=True):
            pre = torch.mm(rows, self._narrow_weight.T, out=made[: len(rows)])
            yield Chunk(first, pre, off, raised_by)
            first += len(rows)

    def _raised(self, above: Tensor | float) -> tuple[Tensor, Tensor, float]:
        """The narrow biases, each token's error, and what was added to the biases.

        A bias so low that its feature is active nowhere counts for no error: it becomes one that is low enough.
        """
        known = self._reach < LARGEST
        reach = torch.where(known, self._reach, 0.0).max().item()
        given = self._bias.double()
        bias = given - above
        size = given.abs() + bias.abs()
        # No feature whose bias is below this is active, nor would be after the raising: that is checked below.
        lowest = -4 * reach - _largest(torch.where(bias < -2 * reach, 0.0, size)) / 16
        matters = ~((bias + self._sums_off(given.abs()) < lowest) | (bias == -math.inf))  # True for NaN
        largest = _largest(torch.where(matters, size, 0.0))
        off = torch.where(known, self._off, 0.0).max().item()
        raised_by = 2 * (off + (HALF_PLACE + self._sums_off(1.0)) * largest)
        wanted = torch.where(matters, bias + raised_by, 0.0)
        narrow = wanted.bfloat16()
        error = self._off + _largest((narrow.double() - wanted).abs()) + self._sums_off(largest + raised_by)
        certain = known & (largest + raised_by < LARGEST) & (error < raised_by)
        if not raised_by + 2 * reach + lowest < 0:
            certain = torch.zeros_like(certain)
        low = torch.full((len(self._narrow_weight),), lowest, dtype=torch.bfloat16)
        low[: self.n_features] = torch.where(matters, narrow, low[: self.n_features])
        return low, torch.where(certain, error, math.inf), raised_by

    def exact(self, tokens: Tensor, features: Tensor) -> Entries:
        """The float32 pre-activations at some entries, tokens in order."""
        per_token = torch.bincount(tokens, minlength=len(self.x))
        pattern = SparsePattern(features, per_token, self.n_features)
        products = pattern.sampled_product(self.x, self._weight)
        return Entries(per_token, features, products.add_(self._bias.index_select(0, features)))

    def search(
        self,
        level: Callable[[Chunk], Tensor | float],
        decide: Callable[[Entries], Entries],
        alone: Callable[[Tensor], Entries],
        above: Tensor | float = 0.0,
    ) -> Entries:
        """The entries of a rule that looks at every token by itself.

        Args:
            level: What the float32 values of a chunk's entries have to reach, raised.
            decide: The rule, on the float32 values of all entries that may.
            alone: The rule, on all float32 pre-activations of some tokens.
            above: As for `chunks`.
        """
        found, left, looked_at = [], [], 0
        for chunk in self.chunks(above):
            candidates, certain = chunk.reaching(level(chunk))
            found.append(candidates)
            left.append(~certain)
            looked_at += len(certain)
            if self.is_mostly_left(left[-1]):
                break  # it will hardly be otherwise for the others
        candidates = Candidates.joined(found)
        entries = decide(self.exact(candidates.tokens, candidates.features))
        rows = F.pad(torch.cat(left), (0, len(self.x) - looked_at), value=True).nonzero()[:, 0]
        return entries.with_rows(rows, self.alone(rows, alone))

    def alone(self, rows: Tensor, rule: Callable[[Tensor], Entries]) -> Entries:
        """A rule's entries of some tokens (m,), from all their float32 pre-activations."""
        if not len(rows):
            return Entries(rows, rows, self.x.new_empty(0))
        return Entries.joined([rule(pre) for pre in self._in_float32(self.x[rows])])

    @staticmethod
    def is_mostly_left(left: Tensor) -> bool:
        """Whether more than half of a chunk's tokens (tokens,) bool are left to float32."""
        return 2 * int(torch.count_nonzero(left)) > len(left)


def _lower(screened: Tensor, error: Tensor) -> Tensor:
    wide = screened.double()
    return wide - HALF_PLACE * wide.abs() - error


def _largest(values: Tensor) -> float:
    """The largest of some numbers, NaN if there is one among them."""
    return values.max().item()
