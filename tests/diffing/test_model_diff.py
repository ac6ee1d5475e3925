"""A comparison in memory, in words and on disk."""

import json

import pytest
import torch

from hfsae.diffing import ModelDiff, Thresholds, diff
from hfsae.diffing.model_diff import DIFF_FILE
from tests.architectures.variants import VARIANTS, activations
from tests.diffing import planted


@pytest.fixture(scope="module")
def found() -> ModelDiff:
    return diff(planted.crosscoder(), activations=planted.activations(), dataset="planted")


def test_counts_and_members_are_what_was_planted(found):
    assert dict(enumerate(found.classes)) == planted.KINDS
    assert found.counts() == {
        "shared": 1, "base-only": 1, "tuned-only": 1, "partly shared": 1, "shrunk": 1, "decoupled": 2, "dead": 1,
    }  # fmt: skip
    assert found.counts("norms")["tuned-only"] == 3
    assert found.of("tuned-only") == [planted.TUNED_ONLY]
    assert set(found.of("tuned-only", "norms")) == {planted.TUNED_ONLY, planted.SHRUNK, planted.DECOUPLED}
    with pytest.raises(ValueError, match="no class 'tuned only', but shared, base-only"):
        found.of("tuned only")
    for tell in (lambda: found.counts("norm"), lambda: found.of("shared", "norm")):
        with pytest.raises(ValueError, match="told by 'norm': expected one of norms, scaling, both"):
            tell()


def test_features_that_do_most_come_first(found):
    weight = found.firing.tokens_firing * found.firing.mean * found.norms.amax(1)
    members = found.of("tuned-only", "norms")
    assert members == sorted(members, key=lambda feature: -weight[feature])


def test_it_says_itself_in_words(found):
    assert repr(found).startswith("ModelDiff(base and tuned over 4,000 tokens: shared 1, base-only 1, tuned-only 1")
    lines = found.table().splitlines()
    assert next(line for line in lines if line.startswith("tuned-only")).split() == ["tuned-only", "3", "1", "1"]
    assert "after latent scaling" in found._repr_html_()


def test_what_is_saved_comes_back_with_what_is_undefined(found, tmp_path):
    path = found.save(tmp_path)
    again = ModelDiff.load(tmp_path)
    assert again.classes == found.classes and again.about == found.about and again.n_tokens == found.n_tokens
    torch.testing.assert_close(again.scaling.error, found.scaling.error, equal_nan=True)
    torch.testing.assert_close(again.norms, found.norms)
    said = json.loads(path.read_text())
    assert said["features"]["error"][planted.DEAD] == [None, None]
    assert said["counts"] == found.counts() and said["features"]["class"] == found.classes


def test_nothing_there_and_another_format_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="hfsae diff"):
        ModelDiff.load(tmp_path)
    (tmp_path / DIFF_FILE).write_text('{"format": 99}')
    with pytest.raises(ValueError, match="does not know"):
        ModelDiff.load(tmp_path)


def test_thresholds_move_the_classes():
    lenient = Thresholds(error=0.7, reconstruction=0.99)
    found = diff(planted.crosscoder(), activations=planted.activations(), thresholds=lenient)
    assert found.classes[planted.SHRUNK] == "tuned-only"


def test_batches_joined_rows_and_rows_by_source_are_the_same():
    sae, rows = planted.crosscoder(), planted.activations(400)
    joined = torch.cat(list(rows.values()), 1)
    whole, parts = diff(sae, activations=joined), diff(sae, activations=joined.split(130))
    torch.testing.assert_close(whole.scaling.error, parts.scaling.error, equal_nan=True, rtol=1e-5, atol=1e-6)
    assert whole.classes == diff(sae, activations=rows).classes


def test_sources_of_other_widths_are_told_apart_by_norms_alone():
    found = diff(VARIANTS["crosscoder"].make().eval(), activations=activations(100))
    assert found.scaling is None and found.classes == found.by_norms
    assert found.error_ratios.isnan().all()
    assert set(found.by_scaling) == {"not told"} and not any(found.counts("scaling").values())
    assert [line.split()[-1] for line in found.table().splitlines()[1:-1]] == ["–"] * len(found.kinds)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="only a crosscoder of several sources"):
        diff(VARIANTS["topk"].make(), activations=activations(5))
    with pytest.raises(ValueError, match="a language model with text, or activations"):
        diff(planted.crosscoder())
