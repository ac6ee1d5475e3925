import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from hfsae.functional import DensePattern, SparseFeatures, SparsePattern
from tests.functional.products import both, masks

quick = settings(max_examples=40)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@quick
@given(masks())
def test_every_view_of_the_features_tells_the_same_whatever_the_pattern(mask: Tensor):
    values, rows = random(*mask.shape), random(mask.shape[1], 3, seed=1)
    dense = values * mask
    for pattern, entries in both(mask, values):
        features = SparseFeatures(pattern, entries.detach(), torch.Size([len(mask)]))
        assert features.shape == dense.shape and features.n_features == mask.shape[1]
        torch.testing.assert_close(features.to_dense(), dense)
        torch.testing.assert_close(features.decode(rows), dense @ rows)
        torch.testing.assert_close(features.tokens_firing(), mask.sum(0))
        rebuilt = SparseFeatures.from_padded(features.values, features.indices, features.n_features)
        torch.testing.assert_close(rebuilt.to_dense(), dense)
        assert features.values.shape == features.indices.shape


@quick
@given(masks())
def test_from_dense_keeps_the_non_zero_ones_alone(mask: Tensor):
    dense = random(*mask.shape) * mask
    features = SparseFeatures.from_dense(dense)
    assert len(features.entry_values) == mask.sum()
    torch.testing.assert_close(features.to_dense(), dense)


def test_leading_dimensions_are_kept_in_every_view():
    dense = random(2, 3, 4, 6).relu()
    features = SparseFeatures.from_dense(dense)
    assert features.shape == dense.shape
    assert features.values.shape == features.indices.shape == (2, 3, 4, int((dense != 0).sum(-1).max()))
    torch.testing.assert_close(features.to_dense(), dense)
    torch.testing.assert_close(features.decode(random(6, 5)), dense @ random(6, 5))


def test_a_single_token_without_leading_dimensions():
    features = SparseFeatures.from_dense(torch.tensor([0.0, 2.0, 0.0]))
    assert features.shape == (3,) and features.indices.tolist() == [1] and features.values.tolist() == [2.0]


def test_padding_at_feature_0_does_not_hide_the_value_of_feature_0():
    features = SparseFeatures.from_padded(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0, 0, 0]]), n_features=3)
    assert features.to_dense().tolist() == [[2.0, 0.0, 0.0]]
    assert features.tokens_firing().tolist() == [1, 0, 0]


def test_from_padded_takes_no_tokens_and_no_places():
    assert SparseFeatures.from_padded(torch.zeros(0, 4), torch.zeros(0, 4).int(), 5).to_dense().shape == (0, 5)
    assert (
        SparseFeatures.from_padded(torch.zeros(3, 0), torch.zeros(3, 0).int(), 5).to_dense().tolist() == [[0] * 5] * 3
    )


def test_values_of_another_precision_decode_in_that_of_the_rows():
    features = SparseFeatures.from_dense(torch.tensor([[0.0, 1.5]]))
    decoded = features.decode(torch.ones(2, 3, dtype=torch.bfloat16))
    assert decoded.dtype == torch.bfloat16 and decoded.tolist() == [[1.5] * 3]


def test_gradients_flow_through_padded_values_and_the_dense_form():
    values = torch.tensor([[2.0, 3.0], [4.0, 0.0]], requires_grad=True)
    indices = torch.tensor([[1, 2], [0, 0]])
    weight = torch.arange(6.0).view(2, 3)
    (SparseFeatures.from_padded(values, indices, 3).to_dense() * weight).sum().backward()
    assert values.grad.tolist() == [[1.0, 2.0], [3.0, 0.0]]


@pytest.mark.parametrize("dense", [False, True])
def test_repr_says_shape_and_number_of_active_features(dense: bool):
    mask = torch.tensor([[True, True, False]])
    values = torch.tensor([[1.0, 0.0, 0.0]])
    pattern = DensePattern.from_mask(mask) if dense else SparsePattern.from_mask(mask)
    features = SparseFeatures(pattern, values if dense else values[mask], torch.Size([1]))
    assert repr(features) == "SparseFeatures(shape=(1, 3), active=1)"
