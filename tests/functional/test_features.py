import re

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


# -- parts of it ------------------------------------------------------------------------------------------------------
def each_way(dense: Tensor) -> list[SparseFeatures]:
    """The same features on both kinds of pattern."""
    flat = dense.reshape(-1, dense.shape[-1])
    return [
        SparseFeatures.from_dense(dense),
        SparseFeatures(DensePattern.from_mask(flat != 0), flat, dense.shape[:-1]),
    ]


INDICES = [
    0,
    -1,
    (1, 2),
    (0, slice(1, None)),
    slice(None, None, 2),
    (Ellipsis, -1),
    None,
    [1, 0, 1],
    (slice(None), [2]),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_an_index_picks_the_tokens_that_it_picks_of_the_dense_features(index):
    dense = random(2, 3, 6).relu()
    wanted = dense[(*index, slice(None))] if isinstance(index, tuple) else dense[index]
    for features in each_way(dense):
        torch.testing.assert_close(features[index].to_dense(), wanted)
        assert features[index].shape == wanted.shape


def test_a_mask_picks_tokens_and_iterating_gives_them_one_by_one():
    dense = random(2, 3, 6).relu()
    keep = torch.tensor([[True, False, True], [False, False, True]])
    for features in each_way(dense):
        torch.testing.assert_close(features[keep].to_dense(), dense[keep])
        assert len(features) == 2
        for one, row in zip(features, dense, strict=True):
            torch.testing.assert_close(one.to_dense(), row)
            assert [token.shape for token in one] == [(6,)] * 3


def test_an_index_that_goes_on_to_features_is_refused_and_names_what_gives_their_values():
    features = SparseFeatures.from_dense(random(2, 3, 6))
    with pytest.raises(IndexError, match=r"shape \(2, 3\).*features\.of\(17\)"):
        features[0, 1, 5]
    with pytest.raises(IndexError, match="out of bounds"):
        features[2]
    with pytest.raises(TypeError, match="one token"):
        list(features[0, 0])


def test_the_values_of_features_are_columns_of_the_dense_form():
    dense = random(2, 3, 6).relu()
    for features in each_way(dense):
        torch.testing.assert_close(features.of(0), dense[..., 0])
        torch.testing.assert_close(features.of(-1), dense[..., -1])
        torch.testing.assert_close(features.of([4, 0, 4]), dense[..., [4, 0, 4]])
        assert features.of([]).shape == (2, 3, 0)
        for none in (6, -7, [0, 6]):
            with pytest.raises(IndexError, match="features 0 to 5"):
                features.of(none)
        for no_index in (2.5, [0.0, 1.0], True, torch.ones(6, dtype=torch.bool)):  # a mask gave features 0 and 1
            with pytest.raises(TypeError, match="expected whole numbers"):
                features.of(no_index)


@pytest.mark.parametrize("k", [1, 3, 6, 9])
def test_the_strongest_are_those_of_a_sort_and_padded_where_fewer_are_active(k):
    dense = random(4, 2, 6) * (random(4, 2, 6, seed=2) > 0)  # some negative: their size counts
    for features in each_way(dense):
        values, indices = features.topk(k)
        assert values.shape == indices.shape == (4, 2, k)
        for row, found, where in zip(dense.view(8, 6), values.view(8, k), indices.view(8, k), strict=True):
            ordered = sorted(((v, i) for i, v in enumerate(row.tolist()) if v), key=lambda one: -abs(one[0]))[:k]
            ordered += [(0.0, 0)] * (k - len(ordered))
            assert list(zip(found.tolist(), where.tolist(), strict=True)) == ordered
        with pytest.raises(ValueError, match="k must be positive"):
            features.topk(0)


def test_gradients_flow_through_an_index():
    dense = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]], requires_grad=True)
    SparseFeatures.from_dense(dense)[1].to_dense().sum().backward()
    assert dense.grad.tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


# -- elsewhere --------------------------------------------------------------------------------------------------------
def test_to_changes_the_values_type_and_device_and_keeps_the_rest():
    dense = random(2, 3, 6).relu()
    for features in each_way(dense):
        narrow = features.to(torch.float16)
        assert narrow.dtype == torch.float16 and features.dtype == torch.float64
        torch.testing.assert_close(narrow.to_dense(), dense.half())
        away = features.to("meta")
        assert away.device.type == "meta" and away.shape == features.shape
        assert features.cpu().device.type == "cpu"


def test_detached_features_have_no_gradient_and_numpy_takes_any():
    dense = torch.tensor([[1.0, 0.0]], requires_grad=True)
    for features in each_way(dense):
        assert features.to_dense().requires_grad and not features.detach().to_dense().requires_grad
        assert features.numpy().tolist() == [[1.0, 0.0]]
        assert features.to(torch.bfloat16).numpy().dtype == "float32"


def test_a_notebook_shows_tokens_with_their_strongest_features():
    dense = torch.zeros(2, 15, 40)
    dense[0, 1, 7], dense[0, 1, 39] = 2.5, 4.0
    for features in each_way(dense):
        html = features._repr_html_()
        assert re.search(r">0, 1</td><td[^>]*>39: 4</td><td[^>]*>7: 2.5</td>", html)
        assert "… and 10 more tokens" in html
    assert "<table>" in SparseFeatures.from_dense(dense[0, 1])._repr_html_()
    assert "<table>" in SparseFeatures.from_dense(dense[:0])._repr_html_()
