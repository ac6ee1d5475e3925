"""Which class a feature falls in, at and beside every threshold."""

import pytest
import torch

from hfsae.diffing.classes import (
    Thresholds,
    classes,
    classes_by_norms,
    classes_by_scaling,
    ratios,
    relative_norms,
)
from hfsae.diffing.scaling import DiffSums, LatentScaling
from tests.diffing import planted

NAMES = ["base", "tuned"]


def of_norms(*norms: float, alive: bool = True, names: list[str] = NAMES) -> str:
    return classes_by_norms(torch.tensor([norms]), names, torch.tensor([alive]), Thresholds())[0]


@pytest.mark.parametrize(
    ("norms", "kind"),
    [
        ((1.0, 1.0), "shared"),
        ((2.0, 1.7), "shared"),
        ((1.0, 0.79), "partly shared"),
        ((0.5, 0.11), "partly shared"),
        ((0.5, 0.09), "base-only"),
        ((0.0, 3.0), "tuned-only"),
    ],
)
def test_norms_decide_at_a_fifth_and_four_fifths_of_the_longest(norms, kind):
    assert of_norms(*norms) == kind


def test_of_three_sources_one_that_stands_alone_is_named_and_a_feature_that_never_fires_is_dead():
    three = ["early", "middle", "late"]
    assert of_norms(0.0, 0.1, 1.0, names=three) == "late-only"
    assert of_norms(0.0, 0.5, 1.0, names=three) == "partly shared"
    assert of_norms(1.0, 0.9, 1.0, names=three) == "shared"
    assert of_norms(1.0, 1.0, alive=False) == "dead"


def test_planted_features_are_told_apart_and_norms_alone_call_the_false_ones_one_models_own():
    sae = planted.crosscoder()
    sums = DiffSums(sae)
    sums.add(planted.activations())
    fires = sums.firing().tokens_firing > 0
    found = classes(sae.source_norms, sums.scaling(), NAMES, fires, Thresholds())
    assert dict(enumerate(found)) == planted.KINDS
    by_norms = classes_by_norms(sae.source_norms, NAMES, fires, Thresholds())
    assert by_norms[planted.SHRUNK] == by_norms[planted.DECOUPLED] == "tuned-only"
    assert by_norms[planted.ITS_TWIN] == "base-only"


def scaled(error: tuple[float, float], reconstruction: tuple[float, float]) -> str:
    scaling = LatentScaling(*(torch.tensor([row], dtype=torch.float64) for row in (error, reconstruction, error)))
    return classes(torch.tensor([[0.0, 1.0]]), scaling, NAMES, torch.tensor([True]), Thresholds())[0]


def test_ratios_decide_and_what_cannot_be_told_is_not_called_one_models_own():
    assert scaled((0.19, 1.0), (0.0, 1.0)) == "tuned-only"
    assert scaled((0.1, 0.4), (0.0, 1.0)) == "shrunk"
    assert scaled((-0.1, 1.0), (0.6, 1.0)) == "decoupled"
    assert scaled((0.0, 0.0), (0.0, 1.0)) == "shrunk"
    assert ratios(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]])).isnan().all()


def test_scaling_alone_finds_what_norms_do_not_tell_yet_and_the_same_of_what_they_tell():
    sae = planted.crosscoder()
    with torch.no_grad():  # as after a short run: the row of a feature that the base has not is half grown
        sae.W_dec[planted.TUNED_ONLY, planted.TUNED_ONLY] = 0.6
    sums = DiffSums(sae)
    sums.add(planted.activations())
    fires = sums.firing().tokens_firing > 0
    alone = classes_by_scaling(sums.scaling(), NAMES, fires, Thresholds(reconstruction=1.0))
    assert classes_by_norms(sae.source_norms, NAMES, fires, Thresholds())[planted.TUNED_ONLY] == "partly shared"
    assert alone[planted.TUNED_ONLY] == "tuned-only" and alone[planted.BASE_ONLY] == "base-only"
    assert {alone[kind] for kind in (planted.SHARED, planted.SHRUNK, planted.PARTLY)} == {"shared"}
    assert alone[planted.DEAD] == "dead"


def test_relative_norms_of_a_feature_that_writes_nothing_are_0():
    assert relative_norms(torch.zeros(1, 2)).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("wrong", [{"absent": -0.1}, {"error": 1.5}, {"absent": 0.9}])
def test_impossible_thresholds_are_refused(wrong):
    with pytest.raises(ValueError, match="absent|thresholds"):
        Thresholds(**wrong)
