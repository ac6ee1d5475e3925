import pytest
import torch

pytest.importorskip("triton")

from hfsae.functional.kernels.decoder_rows import divide_by_norms, remove_parallel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(0, 4), (1, 1), (3, 5), (2, 300)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gradient_loses_what_lies_along_its_row(shape: tuple[int, int]):
    rows = torch.nn.functional.normalize(torch.randn(shape, device=DEVICE), dim=1)
    grads = torch.randn(shape, device=DEVICE)
    expected = grads - (grads * rows).sum(1, keepdim=True) * rows
    remove_parallel(grads, rows)
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_come_back_to_unit_norm_and_tiny_ones_stay_small(shape: tuple[int, int]):
    rows = torch.randn(shape, device=DEVICE)
    rows[:1] = 1e-20
    expected = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    divide_by_norms(rows, 1e-12)
    torch.testing.assert_close(rows, expected)
