import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfsae.analysis import FeatureMap, TokenTexts
from hfsae.analysis.plain_values import significant
from hfsae.dashboard import page_contents
from hfsae.dashboard.page_contents import PageContents, pack, unpack
from tests.dashboard.tiny import collection, tokenizer


@pytest.fixture(scope="module")
def written() -> PageContents:
    return PageContents.of(collection(), TokenTexts(tokenizer()))


def opened(written: PageContents) -> list[dict]:
    """All features, with the tokens of their examples as texts."""
    features = []
    for group in map(unpack, written.groups):
        for feature in group["features"]:
            for example in [*feature["top"], *(example for band in feature["bands"] for example in band)]:
                example["tokens"] = [group["texts"][number] for number in example["tokens"]]
            features.append(feature)
    return features


def test_every_feature_comes_back_from_the_groups(written):
    texts = TokenTexts(tokenizer())
    for feature, found in zip(collection(), opened(written), strict=True):
        assert found["tokens_firing"] == feature.tokens_firing and found["histogram"] == feature.histogram
        assert [len(band) for band in found["bands"]] == [len(band) for band in feature.quantiles()]
        for example, shown in zip(feature.top, found["top"], strict=True):
            assert shown["tokens"] == texts(example.token_ids) and shown["peak"] == example.peak
            assert shown["activations"] == pytest.approx(example.activations, rel=1e-3)
        effects = [(texts([token])[0], effect) for token, effect in feature.promoted]
        assert [tuple(pair) for pair in found["promoted"]] == [(t, pytest.approx(e, rel=1e-3)) for t, e in effects]
        assert [near for near, _ in found["decoder_neighbours"]] == [n.feature for n in feature.decoder_neighbours]
        assert [row[0] for row in found["co_firing"]] == [partner.feature for partner in feature.co_firing]


def test_the_index_has_what_lists_need(written):
    columns, texts = written.index["features"], TokenTexts(tokenizer())
    assert columns["index"] == list(range(40))
    assert columns["density"] == pytest.approx(collection().densities.tolist(), rel=1e-3)
    assert columns["maximum"] == pytest.approx(collection().statistics.maxima.tolist(), rel=1e-3)
    for peaks, feature in zip(columns["peaks"], collection(), strict=True):
        assert set(peaks) <= {texts([example.token_ids[example.peak]])[0] for example in feature.top}
        assert bool(peaks) == bool(feature.top)


def test_groups_are_of_one_size_but_the_last(monkeypatch):
    monkeypatch.setattr(page_contents, "GROUP_SIZE", 16)
    written = PageContents.of(collection(), TokenTexts(tokenizer()))
    assert [len(unpack(group)["features"]) for group in written.groups] == [16, 16, 8]
    assert written.index["group_size"] == 16 and len(opened(written)) == 40


def test_a_map_may_have_neither_groups_nor_shares():
    places = torch.tensor([[0.0, 2.0], [1.0, 1.0], [4.0, 0.0]])
    layout = FeatureMap(torch.tensor([1, 4, 7]), places, None, 32, None)
    shown = PageContents.of(collection(), TokenTexts(tokenizer()), layout=layout).index["map"]
    assert (shown["explained"], shown["words"], shown["groups"]) == (None, [], [0, 0, 0])
    assert (shown["x"], shown["y"]) == ([0, 250, 1000], [1000, 500, 0])


@given(st.dictionaries(st.text(), st.text() | st.lists(st.integers())))
def test_packing_keeps_everything(content):
    assert unpack(pack(content)) == content


@given(st.floats(min_value=-1e9, max_value=1e9, allow_subnormal=False))
def test_four_digits_are_kept(value):
    assert significant(value) == pytest.approx(value, rel=5e-4, abs=1e-300)
    assert len(f"{significant(value):.15g}".replace("-", "").replace(".", "").split("e")[0].strip("0")) <= 4


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf")])
def test_what_is_not_known_is_no_zero(value):
    assert significant(value) is None
    assert unpack(pack({"effects": [["w", value]]})) == {"effects": [["w", None]]}
