"""The entries of a pattern, cut by rules of which each keeps all that the one before keeps.

With the k largest for rising k the parts are what each k adds. To decode every part once gives the reconstructions
for all k at the cost of the last.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from hfsae.functional.patterns import DensePattern, Pattern, SparsePattern
from hfsae.functional.selection import Selection, TopK


def nested(
    pattern: Pattern, values: Tensor, pre: Tensor, rules: Sequence[Selection], most: int
) -> list[tuple[Pattern, Tensor]]:
    """The entries that the first rule keeps, what the second keeps beside them, and so on; last all others.

    Args:
        pattern: What a wider rule of the same kind picked.
        values: Values at its entries.
        pre: Pre-activations at its entries.
        rules: Rising, such as `TopK(4)` and `TopK(8)` of entries that `TopK(16)` picked.
        most: How many entries a token has at most, here 16.

    Returns:
        One pattern more than there are rules, and the values at its entries.

    Example:
        >>> import torch
        >>> from hfsae.functional import SparsePattern, TopK
        >>> from hfsae.functional.nested import nested
        >>> pre = torch.tensor([3.0, 1.0, 5.0])
        >>> pattern = SparsePattern(torch.tensor([0, 4, 7]), torch.tensor([3]), n_features=8)
        >>> [values.tolist() for _, values in nested(pattern, pre, pre, [TopK(1), TopK(2)], 3)]
        [[5.0], [3.0], [1.0]]
    """
    if isinstance(pattern, DensePattern):
        masks = _parted([rule.mask(pre.detach()) & pattern.mask for rule in rules], pattern.mask)
        return [(DensePattern.from_mask(mask), values * mask) for mask in masks]
    assert isinstance(pattern, SparsePattern)
    if pattern.each and all(isinstance(rule, TopK) for rule in rules):
        return _by_rank(pattern, values, pre.detach(), [cast(TopK, rule).k for rule in rules])
    found: list[tuple[Pattern, Tensor]] = []
    for mask in _parted(
        _kept(pattern, pre.detach(), rules, most), torch.ones_like(pattern.features, dtype=torch.bool)
    ):
        chosen = mask.nonzero()[:, 0]
        per_token = torch.bincount(pattern.tokens[chosen], minlength=pattern.n_tokens)
        part = SparsePattern(pattern.features[chosen], per_token, pattern.n_features)
        found.append((part, values.index_select(0, chosen)))
    return found


def _parted(kept: Sequence[Tensor], everything: Tensor) -> list[Tensor]:
    """Masks of what each rule keeps beyond the rule before it; the last one of what none keeps."""
    nothing = torch.zeros_like(everything)
    return [wider & ~narrower for narrower, wider in pairwise([nothing, *kept, everything])]


def _by_rank(pattern: SparsePattern, values: Tensor, pre: Tensor, ks: Sequence[int]) -> list[tuple[Pattern, Tensor]]:
    """The same where every token has as many entries, for the k largest: in shapes that no batch changes."""
    n_tokens, each = pattern.n_tokens, pattern.each
    order = pre.view(n_tokens, each).sort(dim=1, descending=True, stable=True).indices
    sizes = [wider - narrower for narrower, wider in pairwise([0, *ks, each])]
    features = pattern.features.view(n_tokens, each).gather(1, order).split(sizes, 1)
    ordered = values.view(n_tokens, each).gather(1, order).split(sizes, 1)
    return [
        (SparsePattern.as_many_each(own, pattern.n_features), part.flatten())
        for own, part in zip(features, ordered, strict=True)
    ]


def _kept(pattern: SparsePattern, pre: Tensor, rules: Sequence[Selection], most: int) -> list[Tensor]:
    """(entries,) bool for each rule, which looks at a table of every token's entries side by side."""
    column = torch.arange(len(pre), device=pre.device) - pattern.offsets[:-1].index_select(0, pattern.tokens)
    place = pattern.tokens * most + column
    table = pre.new_full((pattern.n_tokens, most), -torch.inf)
    table.view(-1)[place] = pre
    return [rule.mask(table).view(-1)[place] for rule in rules]
