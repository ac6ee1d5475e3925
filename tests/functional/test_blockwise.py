from itertools import pairwise

import pytest
import torch

from hfsae.functional import DensePattern, SparsePattern, blockwise, patterns
from hfsae.functional.blockwise import decode_blocks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# In no order within a token, as no rule promises one; one token has none.
PICKED = [[7, 2, 11, 3], [], [0, 5, 4], [10, 1, 8, 6, 9]]
TOKENS = torch.tensor([token for token, picked in enumerate(PICKED) for _ in picked])
FEATURES = torch.tensor([feature for picked in PICKED for feature in picked])
sizes_of_blocks = pytest.mark.parametrize("sizes", [[12], [3, 9], [1, 0, 5, 6], [0, 12, 0]], ids=str)


def check(kind: str, sizes: list[int], dtype: torch.dtype) -> None:
    """Values and both gradients against a product for each block, in float64."""
    generator = torch.Generator().manual_seed(len(sizes))
    shapes = (len(FEATURES),), (12, 6), (len(sizes), len(PICKED), 6)
    values, rows, weights = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    z = torch.zeros(len(PICKED), 12, dtype=torch.float64).index_put((TOKENS, FEATURES), values)
    expected, ends = [], [0, *torch.tensor(sizes).cumsum(0).tolist()]
    in_z, in_rows = torch.zeros_like(z), torch.zeros_like(rows)
    for weight, (start, end) in zip(weights, pairwise(ends), strict=True):
        expected.append(z[:, start:end] @ rows[start:end])
        in_z[:, start:end] = weight @ rows[start:end].T
        in_rows[start:end] = z[:, start:end].T @ weight
    if kind == "dense":
        pattern, own, in_values = DensePattern(z, lambda pre: pre != 0), z, in_z
    else:
        pattern = SparsePattern(FEATURES.to(DEVICE), torch.tensor([*map(len, PICKED)], device=DEVICE), 12)
        own, in_values = values, in_z[TOKENS, FEATURES]
    leaves = [leaf.to(DEVICE, dtype).requires_grad_() for leaf in (own, rows)]
    written = list(decode_blocks(pattern, *leaves, sizes))
    torch.autograd.backward(written, [weight.to(written[0]) for weight in weights])
    made = [*written, *(leaf.grad for leaf in leaves)]
    for mine, theirs in zip(made, [*expected, in_values, in_rows], strict=True):
        torch.testing.assert_close(mine.cpu(), theirs.to(dtype))


@sizes_of_blocks
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_blocks_of_features_are_decoded_each_by_itself(kind: str, sizes: list[int]):
    check(kind, sizes, torch.float64)


@sizes_of_blocks
def test_so_they_are_by_kernels_all_at_once(sizes: list[int], monkeypatch):
    pytest.importorskip("triton")
    for module in (blockwise, patterns):
        monkeypatch.setattr(module, "serves", lambda *_: True)
    monkeypatch.delattr(SparsePattern, "blocks")  # which asks the device
    check("sparse", sizes, torch.float32)
