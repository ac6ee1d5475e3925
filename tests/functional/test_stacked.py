"""Patterns side by side: entries, values, parts and gradients, against plain concatenation."""

import pytest
import torch

from hfsae.functional import DensePattern, SparsePattern
from hfsae.functional.stacked import stacked, sum_of_ends

SIZES = [3, 5, 2]


def masks(n_tokens: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.rand(n_tokens, size, generator=generator) > 0.5 for size in SIZES]
    if n_tokens:
        made[0][2] = made[1][2] = made[2][2] = False  # a token without entries
    return made


@pytest.mark.parametrize("kinds", ["sss", "ddd", "sds"])
@pytest.mark.parametrize("n_tokens", [6, 0])
def test_patterns_side_by_side_are_one_of_all_their_columns(kinds: str, n_tokens: int):
    dense = [torch.randn(mask.shape, dtype=torch.float64) * mask for mask in masks(n_tokens)]
    parts = []
    for kind, mask, values in zip(kinds, masks(n_tokens), dense, strict=True):
        if kind == "d":
            parts.append((DensePattern.from_mask(mask), values))
        else:
            parts.append((SparsePattern.from_mask(mask), values[mask]))
    pattern, values = stacked(parts)
    whole = torch.cat(dense, 1)
    assert isinstance(pattern, DensePattern if kinds == "ddd" else SparsePattern)
    assert (pattern.n_tokens, pattern.n_features) == whole.shape
    assert torch.equal(pattern.to_dense(values), whole)
    rows = torch.randn(sum(SIZES), 4, dtype=torch.float64)
    torch.testing.assert_close(pattern.decode(values, rows), whole @ rows)
    for (part, own), expected in zip(pattern.blocks(values, SIZES), dense, strict=True):
        assert torch.equal(part.to_dense(own), expected)
    others = [4, 6]
    for (part, own), expected in zip(pattern.blocks(values, others), whole.split(others, 1), strict=True):
        assert torch.equal(part.to_dense(own), expected)


def test_gradients_go_to_the_part_that_a_value_came_from():
    parts = [(SparsePattern.from_mask(mask), torch.randn(int(mask.sum()), dtype=torch.float64)) for mask in masks()]
    leaves = [values.requires_grad_() for _, values in parts]

    def there_and_back(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pattern, values = stacked([(part, own) for (part, _), own in zip(parts, leaves, strict=True)])
        return (values.square(), *(own**3 for _, own in pattern.blocks(values, SIZES)))

    assert torch.autograd.gradcheck(there_and_back, leaves)


def test_a_sum_of_ends_is_the_sum_of_padded_ones_with_its_gradient():
    parts = [torch.randn(3, width, dtype=torch.float64, requires_grad=True) for width in (6, 4, 2)]
    expected = sum(torch.nn.functional.pad(part, (6 - part.shape[1], 0)) for part in parts)
    torch.testing.assert_close(sum_of_ends(parts), expected)
    assert torch.autograd.gradcheck(lambda *parts: sum_of_ends(parts), parts)
