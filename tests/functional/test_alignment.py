import torch

from hfsae.functional import blocks
from hfsae.functional.alignment import align, keep_aligned


def rows(seed: int) -> torch.Tensor:
    return torch.randn(9, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_products_become_1_and_what_lies_at_right_angles_stays(monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK", 8)  # two rows at a time
    encoder, decoder = rows(0), rows(1)
    before = encoder.clone()
    align(encoder, decoder)
    torch.testing.assert_close((encoder * decoder).sum(1), torch.ones(9, dtype=torch.float64))
    unit = torch.nn.functional.normalize(decoder, dim=1)
    for row, was, d in zip(encoder, before, unit, strict=True):
        torch.testing.assert_close(row - (row @ d) * d, was - (was @ d) * d)


def test_of_a_unit_row_it_is_the_formula_of_the_paper():
    encoder, d = rows(0), torch.nn.functional.normalize(rows(1), dim=1)
    expected = encoder + (1 - (encoder * d).sum(1, keepdim=True)) * d
    align(encoder, d)
    torch.testing.assert_close(encoder, expected)


def test_a_feature_that_writes_nothing_keeps_its_encoder_row():
    encoder, decoder = rows(0), rows(1)
    decoder[3] = 0
    before = encoder[3].clone()
    align(encoder, decoder)
    assert torch.equal(encoder[3], before) and encoder.isfinite().all()


def test_a_step_along_the_gradient_that_is_left_keeps_the_product():
    encoder, decoder, gradient = rows(0), rows(1), rows(2)
    align(encoder, decoder)
    keep_aligned(gradient, decoder)
    assert gradient.abs().sum(1).min() > 0.1
    torch.testing.assert_close(((encoder - gradient) * decoder).sum(1), torch.ones(9, dtype=torch.float64))
