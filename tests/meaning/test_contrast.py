"""Sets of texts against the same figures written out longhand, and against chance."""

from itertools import combinations

import pytest
import torch

from hfsae.meaning.contrast import contrast, ranks, thresholds
from hfsae.meaning.peaks import read_peaks
from tests.analysis.tiny import read_longhand, setting, texts

WITH = [f"w0 {' '.join(f'w{(i * j) % 7 + 1}' for j in range(2, 7))} w9 w{i % 5}" for i in range(9)]
WITHOUT = [text.replace("w9", f"w{i % 3 + 3}") for i, text in enumerate(WITH)]


def longhand_peaks(documents: list[str]) -> torch.Tensor:
    peaks = torch.zeros(len(documents), 40)
    for token in read_longhand(documents, setting()):
        peaks[token.document] = torch.maximum(peaks[token.document], token.features)
    return peaks


def test_peaks_are_the_largest_values_of_each_text():
    documents = [text for text in texts(20) if len(text.split()) > 1]
    peaks = read_peaks(*setting(), documents, n_texts=len(documents), batch_size=3)
    expected = longhand_peaks(documents)
    torch.testing.assert_close(peaks.dense(torch.arange(40)), expected, atol=1e-5, rtol=1e-5)
    assert peaks.firing().tolist() == (expected.amax(0) > 0).nonzero().flatten().tolist()
    torch.testing.assert_close(peaks.dense(torch.tensor([3, 17])), expected[:, [3, 17]], atol=1e-5, rtol=1e-5)
    counted = [sum(1 for word in range(len(text.split())) if word % 12) for text in documents]
    assert peaks.n_tokens.tolist() == counted


def test_ranks_of_equal_values_are_their_mean():
    values = torch.randint(0, 4, (11, 5)).float()
    expected = torch.empty(11, 5, dtype=torch.float64)
    for i in range(11):
        expected[i] = (values < values[i]).sum(0) + ((values == values[i]).sum(0) + 1) / 2
    assert torch.equal(ranks(values), expected)


def test_thresholds_are_those_of_the_best_f1_of_all():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(0, 5, (9, 4), generator=generator).float()
        labels = torch.rand(9, generator=generator) < 0.5
        if not labels.any():
            continue
        found = thresholds(values, labels)
        for column in range(4):
            tried = [cut for cut in (0.5, 1.5, 2.5, 3.5) if (values[:, column] >= cut).any()]

            def f1(cut, column=column, values=values, labels=labels):
                says = values[:, column] >= cut
                return float(2 * (says & labels).sum() / (says.sum() + labels.sum()))

            assert (f1(float(found[column])) if tried else 0) == pytest.approx(max(map(f1, tried), default=0))
            assert float(found[column]) > 0


def test_the_first_feature_is_the_best_by_longhand_and_its_figures_are_right():
    found = contrast(*setting(), WITH, WITHOUT, top=40, n_permutations=200)
    peaks = longhand_peaks([*WITH, *WITHOUT])
    yes, no = peaks[:9], peaks[9:]
    auroc = ((yes[:, None] > no).double() + 0.5 * (yes[:, None] == no).double()).mean((0, 1))
    told = {one.feature: one for one in found.features}
    assert found.features[0].auroc == pytest.approx(float(auroc.max()), abs=1e-6)
    assert len(told) == int((peaks.amax(0) > 0).sum())
    for feature, one in told.items():
        assert one.auroc == pytest.approx(float(auroc[feature]), abs=0.02)  # ties of rounding
        assert (one.positives, one.negatives) == (int((yes[:, feature] > 0).sum()), int((no[:, feature] > 0).sum()))
    assert [one.auroc for one in found.features] == sorted((one.auroc for one in found.features), reverse=True)
    best = found.features[0]
    assert best.p_value == min(one.p_value for one in found.features) and 0 < best.p_value < 0.2
    assert best.precision > 0.6 and best.recall > 0.6 and (found.n_positive, found.n_negative) == (9, 9)


def test_a_p_value_is_the_share_of_all_dealings_in_which_the_best_feature_does_as_well():
    sets = WITH[:4], WITHOUT[:4]
    found = contrast(*setting(), *sets, n_permutations=4000)
    peaks = longhand_peaks([*sets[0], *sets[1]]).double()
    peaks = (peaks * 1e4).round()  # ties are ties

    def best(chosen):
        labels = torch.zeros(8, dtype=torch.bool)
        labels[list(chosen)] = True
        yes, no = peaks[labels], peaks[~labels]
        return float(((yes[:, None] > no).double() + 0.5 * (yes[:, None] == no).double()).mean((0, 1)).max())

    everything = [best(chosen) for chosen in combinations(range(8), 4)]
    exact = sum(value >= found.features[0].auroc - 1e-6 for value in everything) / len(everything)
    assert found.features[0].p_value == pytest.approx(exact, abs=0.03)


def test_where_there_is_nothing_to_tell_nothing_is_claimed():
    """Sets dealt at random: the whole search does no better than a guess, and p is not small."""
    documents = list(dict.fromkeys(text for text in texts(80) if len(text.split()) > 3))[:40]
    small = right = total = 0
    for seed in range(6):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed)).tolist()
        dealt = [documents[i] for i in order]
        found = contrast(*setting(), dealt[:20], dealt[20:], n_permutations=100, seed=seed, top=1)
        small += found.features[0].p_value <= 0.05
        right, total = right + found.precision, total + 1
    assert small <= 2 and 0.25 < right / total < 0.75


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ([], WITHOUT, "0 different positive texts: at least 3"),
        (WITH, WITHOUT[:2], "2 different negative texts"),
        (WITH, [*WITHOUT, WITH[3]], "1 texts are in both sets"),
        (["w1 w2"] * 5, WITHOUT, "1 different positive texts"),
        (WITH, [*WITHOUT, "w1"], "'w1' has no token that counts"),
        (WITH, [*WITHOUT, ""], "has no token that counts"),
        ("w1 w2 w3", WITHOUT, "no list of texts"),
        (WITH, [1, 2, 3], "no list of texts"),
    ],
)
def test_sets_that_cannot_be_told_apart_are_refused(positive, negative, message):
    with pytest.raises(ValueError, match=message):
        contrast(*setting(), positive, negative)
