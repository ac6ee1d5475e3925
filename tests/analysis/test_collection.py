import json
import re

import pytest
import torch

from hfsae.analysis import FeatureCollection, collect_features
from tests.analysis.tiny import setting, texts


@pytest.fixture(scope="module")
def collection() -> FeatureCollection:
    return collect_features(*setting(), texts(), n_top=3, n_sample=20, dataset="random words", disable_tqdm=True)


def test_what_was_saved_is_loaded_and_nothing_is_pickled(collection, tmp_path):
    collection.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"features.json", "features.safetensors"}
    loaded = FeatureCollection.load(tmp_path)
    assert loaded.about == collection.about and list(loaded) == list(collection)
    assert json.loads((tmp_path / "features.json").read_text())["dataset"] == "random words"


def test_an_unknown_format_and_an_empty_folder_are_errors(collection, tmp_path):
    with pytest.raises(FileNotFoundError, match="collect_features"):
        FeatureCollection.load(tmp_path)
    collection.save(tmp_path)
    (tmp_path / "features.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="does not know"):
        FeatureCollection.load(tmp_path)


def test_features_are_found_by_their_index(collection):
    assert collection.of(5).index == 5 and len(collection) == 40
    with pytest.raises(KeyError, match="feature 77"):
        collection.of(77)


def test_features_that_fire_together_are_found_with_their_share(collection):
    for feature in collection:
        for partner in feature.co_firing:
            together = sum(partner.feature in example.partners for example in feature.sample)
            assert partner.share == pytest.approx(together / len(feature.sample)) and together >= 2
            assert partner.share > partner.density and partner.feature != feature.index
            assert partner.density == pytest.approx(float(collection.densities[partner.feature]))
    assert any(feature.co_firing for feature in collection)


def test_neighbours_and_effects_are_in_the_features(collection):
    feature = collection[4]
    assert feature.decoder_neighbours[0].feature == int(collection.neighbours.decoder[4, 0])
    assert [effect.token_id for effect in feature.promoted] == collection.logits.promoted[4].tolist()
    assert feature.suppressed[0].effect == pytest.approx(float(collection.logits.suppressed_by[4, 0]))


def test_a_collection_without_effects_on_logits_keeps_none(collection, tmp_path):
    without = FeatureCollection.from_tensors(
        collection.about, {n: t for n, t in collection.tensors().items() if not n.startswith("logits.")}
    )
    without.save(tmp_path)
    loaded = FeatureCollection.load(tmp_path)
    assert loaded.logits is None and loaded[0].promoted == []
    assert torch.equal(loaded.top.tokens, collection.top.tokens)


def test_a_collection_and_its_features_are_shown_in_a_line_each_and_as_a_table(collection: FeatureCollection):
    shown = repr(collection)
    about = collection.about
    assert f"{len(collection):,} of {about.n_features:,} features, over {about.n_tokens:,} tokens" in shown
    assert str(about.hook_point) in shown and "\n" not in shown
    first = collection[0]
    assert repr(first).startswith(f"Feature({first.index}: fires on {first.density:.4%} of tokens, maximum ")
    html = collection._repr_html_()
    densities = re.findall(r">([\d.]+)%<", html)
    assert densities == [f"{100 * share:.4f}" for share in sorted((f.density for f in collection), reverse=True)[:20]]
