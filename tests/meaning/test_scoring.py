import random
from math import comb

import pytest

from hfsae.analysis import Example, TokenTexts
from hfsae.meaning.scoring import (
    Trial,
    balanced_accuracy,
    mean_over_features,
    scores_of,
    trials,
    verdicts_in,
    wilson,
)
from tests.analysis.tiny import setting


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("[1, 0, 1]", [True, False, True]),
        ("Sure! [true,false,False] as asked [1]", [True, False, False]),
        ("[1,\n0, 1]", [True, False, True]),
        ("[1, 0]", None),
        ("[1, 0, 1, 1]", None),
        ("[1, 0, 2]", None),
        ("[1, 0, maybe]", None),
        ("yes no yes", None),
        ('[1, 0, "1"]', None),
        ("[[1], 0, 1]", None),
        ("", None),
    ],
)
def test_an_answer_is_a_list_of_as_many_verdicts_as_were_asked_for(answer, said):
    assert verdicts_in(answer, 3) == said


def test_wilson_is_where_the_normal_test_just_does_not_refuse():
    """The interval's ends are the shares from which the observed one is 1.96 standard errors away."""
    for hits, size in [(0, 7), (3, 7), (7, 7), (40, 50)]:
        for end in wilson(hits, size):
            if 0 < end < 1:
                assert abs(hits / size - end) / (end * (1 - end) / size) ** 0.5 == pytest.approx(1.959964, rel=1e-5)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Exactly, over all outcomes of 12 and 15 trials."""
    for tpr, tnr in [(0.5, 0.5), (0.8, 0.6), (0.95, 0.9)]:
        covered = 0.0
        for hits in range(13):
            for others in range(16):
                chance = comb(12, hits) * tpr**hits * (1 - tpr) ** (12 - hits)
                chance *= comb(15, others) * tnr**others * (1 - tnr) ** (15 - others)
                _, low, high = balanced_accuracy(hits, 12, others, 15)
                covered += chance * (low <= (tpr + tnr) / 2 <= high)
        assert 0.93 < covered < 0.98


def test_scores_are_balanced_and_leave_out_what_was_not_answered():
    told = [(Trial("", "fires"), verdict) for verdict in (True, True, False, None)]
    told += [(Trial("", "random"), verdict) for verdict in (False, None)]
    told += [(Trial("", "neighbouring"), verdict) for verdict in (True, True, False, False, False)]
    scores = scores_of("detection", told)
    assert scores["detection_random"].accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert scores["detection_neighbouring"].accuracy == pytest.approx((2 / 3 + 3 / 5) / 2)
    assert (scores["detection_random"].positives, scores["detection_random"].unanswered) == (3, 2)
    assert (scores["detection_neighbouring"].negatives, scores["detection_neighbouring"].unanswered) == (5, 1)
    assert scores_of("fuzzing", told[:4]) == {}


def test_the_same_answer_to_everything_is_a_guess():
    told = [(Trial("", group), True) for group in ("fires", "random", "neighbouring") for _ in range(9)]
    assert {score.accuracy for score in scores_of("fuzzing", told).values()} == {0.5}


def test_fuzzing_marks_the_features_own_tokens_or_as_many_others():
    parts = TokenTexts(setting().tokenizer)
    example = Example(0, 2, 10.0, [1, 2, 3, 4], [0.0, 3.0, 10.0, 2.9], 2, [])
    found = trials("fuzzing", [example], {"random": [[5, 6, 7, 8, 9]]}, parts, random.Random(0))
    by_group = {trial.group: trial.text for trial in found}
    w0, w1, w2, w3 = parts([1, 2, 3, 4])
    # From 0.3 of the largest value on; it fires on three tokens, so three are marked where it does not fire.
    assert by_group["fires"] == f"{w0}<<{w1}{w2}>>{w3}"
    inside = "".join(piece.split(">>")[0] for piece in by_group["random"].split("<<")[1:])
    assert len(inside.split()) == 3
    plain = trials("detection", [example], {"random": [[5, 6]]}, parts, random.Random(0))
    assert {trial.text for trial in plain} == {"".join(parts([1, 2, 3, 4])), "".join(parts([5, 6]))}


def test_the_mean_over_features_has_an_interval():
    mean, low, high = mean_over_features([0.4, 0.6] * 50)
    assert (
        mean == pytest.approx(0.5) and low == pytest.approx(0.48, abs=0.01) and high == pytest.approx(0.52, abs=0.01)
    )
