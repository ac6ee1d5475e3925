import gzip
import json

import pytest

from hfsae.analysis import collect_features, export_neuronpedia
from tests.analysis.tiny import N_FEATURES, setting, texts


@pytest.fixture(scope="module")
def collection():
    return collect_features(*setting(), texts(), n_top=3, n_sample=10, dataset="random words", disable_tqdm=True)


def export(collection, folder, **options):
    names = {"model_id": "tiny", "layer": 1, "source_set": "res-40", "creator": "somebody", **options}
    return export_neuronpedia(collection, setting().tokenizer, folder, **names)


def lines(path) -> list[dict]:
    opened = gzip.open(path, "rt") if path.suffix == ".gz" else path.open()
    with opened as file:
        return [json.loads(line) for line in file]


def test_every_feature_is_a_line_with_what_is_known_of_it(collection, tmp_path):
    folder = export(collection, tmp_path)
    assert folder == tmp_path / "tiny" / "1-res-40"
    features = lines(folder / "features" / "batch-0.jsonl.gz")
    assert [row["index"] for row in features] == [str(i) for i in range(N_FEATURES)]
    for row, feature in zip(features, collection, strict=True):
        assert row["frac_nonzero"] == feature.density and row["maxActApprox"] == feature.maximum
        assert sum(row["freq_hist_data_bar_heights"]) == feature.tokens_firing
        assert row["topkCosSimIndices"] == [near.feature for near in feature.decoder_neighbours]
        assert len(row["pos_str"]) == len(row["pos_values"]) == 10
        assert row["modelId"] == "tiny" and row["layer"] == "1-res-40"


def test_every_example_is_a_line_with_its_tokens_and_values(collection, tmp_path):
    rows = lines(export(collection, tmp_path) / "activations" / "batch-0.jsonl.gz")
    assert len({row["id"] for row in rows}) == len(rows) == sum(len(f.top) + len(f.sample) for f in collection)
    for row in rows:
        assert len(row["tokens"]) == len(row["values"]) and row["maxValue"] == pytest.approx(
            max(row["values"]), abs=1e-3
        )
        assert row["values"][row["maxValueTokenIndex"]] == pytest.approx(row["maxValue"], abs=1e-3)
    mine = [row for row in rows if row["index"] == "7"]
    feature = collection.of(7)
    top = [row for row in mine if row["binContains"] is None]
    assert [row["values"][row["qualifyingTokenIndex"]] for row in top] == pytest.approx(
        [example.activation for example in feature.top], abs=1e-3
    )
    banded = [row for row in mine if row["binContains"] is not None]
    assert len(banded) == len(feature.sample)
    assert all(
        row["binMin"] - 1e-3 <= row["values"][row["qualifyingTokenIndex"]] <= row["binMax"] + 1e-3 for row in banded
    )


def test_every_example_passes_the_checks_of_neuronpedias_own_client(collection, tmp_path):
    """Those of `Activation.from_np_db_json` of neuronpedia 1.2.1; benchmarks/outside.py runs the client itself."""
    for row in lines(export(collection, tmp_path) / "activations" / "batch-0.jsonl.gz"):
        assert row["source"] == "1-res-40" and row["modelId"] == "tiny" and int(row["index"]) >= 0
        assert len(row["tokens"]) == len(row["values"]) and {"binMin", "binMax"} <= row.keys()
        assert row["binContains"] is None or 0 <= row["binContains"] <= 1


def test_logit_histograms_count_every_token_of_the_vocabulary(collection, tmp_path):
    features = lines(export(collection, tmp_path) / "features" / "batch-0.jsonl.gz")
    vocabulary = setting().model.config.vocab_size
    for row in features:
        heights, middles = row["logits_hist_data_bar_heights"], row["logits_hist_data_bar_values"]
        assert sum(heights) == vocabulary and len(heights) == len(middles) == 50 and middles == sorted(middles)
        half = (middles[1] - middles[0]) / 2
        assert middles[0] - half == pytest.approx(min(row["neg_values"]), abs=4e-3)
        assert middles[-1] + half == pytest.approx(max(row["pos_values"]), abs=4e-3)


def test_the_place_can_be_named_as_transformer_lens_does(collection, tmp_path):
    for name, expected in (
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
        (None, collection.about.hook_point),
    ):
        folder = export(collection, tmp_path / str(name), hook_name=name)
        assert {row["hookName"] for row in lines(folder / "features" / "batch-0.jsonl.gz")} == {expected}


def test_the_release_and_the_source_are_described(collection, tmp_path):
    folder = export(collection, tmp_path, release="my-release", hub_repo="me/sae")
    (source,), (release,) = lines(folder / "source.jsonl"), lines(folder / "release.jsonl")
    assert source["id"] == "1-res-40" and source["dataset"] == "random words" and source["hfRepoId"] == "me/sae"
    assert release["name"] == "my-release" and release["creatorName"] == "somebody"
    assert (folder / "model.jsonl").is_file() and (folder / "sourceset.jsonl").is_file()


def test_names_that_would_leave_the_folder_are_refused(collection, tmp_path):
    for name in ("", "a/b", ".."):
        with pytest.raises(ValueError, match="cannot be the name of a folder"):
            export(collection, tmp_path, model_id=name)
