"""What is marked in texts, against tokens found by another way, and features found by it."""

import pytest
import torch

from hfsae.meaning.contrast import contrast
from hfsae.meaning.marks import MarkedText, marked_tokens, parts_of_texts, read_marks
from hfsae.meaning.peaks import read_peaks
from tests.analysis.tiny import read_longhand, setting
from tests.meaning.test_contrast import WITH, WITHOUT

MARKED = [text.replace(" w9", " <<w9>>") for text in WITH]


def test_marks_are_taken_out_and_say_where_they_stood():
    text = "a <<b>> c<<d\ne>>f << g"
    found = read_marks(text)
    assert found.text == "a b cd\nef << g"
    assert [found.text[start:end] for start, end in found.spans] == ["b", "d\ne"]
    for unmarked in ("a << b", "a >> b", "<<>>", ""):
        with pytest.raises(ValueError, match="nothing is marked"):
            read_marks(unmarked)


def test_marked_tokens_are_the_words_that_were_marked():
    for marked in MARKED:
        found = marked_tokens(read_marks(marked), setting().tokenizer)
        assert found.tolist() == ["<<" in word for word in marked.split()]
    # Inside of a word it is that word, and over several these.
    assert marked_tokens(MarkedText("w1 w22 w3", ((3, 4),)), setting().tokenizer).tolist() == [False, True, False]
    assert marked_tokens(MarkedText("w1 w22 w3", ((0, 7),)), setting().tokenizer).tolist() == [True, True, False]


def test_peaks_of_parts_are_those_of_their_tokens():
    """One text is longer than the context, and its pieces have marks of their own."""
    marked = [*MARKED, "w1 w2 <<w3>> " + "w4 w5 " * 6 + "<<w6>> <<w7>> w8"]
    texts, n_rest = [read_marks(one).text for one in marked], len(marked) + len(WITHOUT)
    parts = parts_of_texts([read_marks(one) for one in marked], len(WITHOUT), setting().tokenizer)
    peaks = read_peaks(*setting(), [*texts, *WITHOUT], n_texts=n_rest + len(marked), parts=parts, batch_size=4)
    expected = torch.zeros(n_rest + len(marked), 40)
    counted = [0] * len(expected)
    for token in read_longhand([*texts, *WITHOUT], setting()):
        part = token.document
        if part < len(marked) and "<<" not in marked[part].split()[token.position]:
            part += n_rest
        expected[part] = torch.maximum(expected[part], token.features)
        counted[part] += 1
    torch.testing.assert_close(peaks.dense(torch.arange(40)), expected, atol=1e-5, rtol=1e-5)
    assert peaks.n_tokens.tolist() == counted and counted[len(marked) - 1] == 3


def test_marks_tell_a_feature_of_what_is_marked_from_one_of_what_stands_beside_it():
    """In each positive text w9 stands behind w8: the marks alone say which is meant."""
    texts = [text.replace("w9", "w8 w9") for text in WITH]
    without = [text.replace("w8", "w1") for text in WITHOUT]
    found = {
        word: contrast(*setting(), [text.replace(word, f"<<{word}>>") for text in texts], without, marked=True, top=40)
        for word in ("w8", "w9")
    }
    for word, one in found.items():
        inside, outside = ([], [])
        for token in read_longhand([*texts, *without], setting()):
            is_marked = token.document < 9 and [*texts, *without][token.document].split()[token.position] == word
            (inside if is_marked else outside).append(token.features)
        best = one.features[0]
        here, elsewhere = (torch.stack(some)[:, best.feature] for some in (inside, outside))
        assert best.auroc > 0.85 and here.mean() > 3 * elsewhere.mean()
        assert (one.n_positive, one.n_negative) == (9, 18)
    assert found["w8"].features[0].feature != found["w9"].features[0].feature


def test_all_of_a_text_may_be_marked_and_nothing_may_not():
    whole = [f"<<{text}>>" for text in WITH]
    assert contrast(*setting(), whole, WITHOUT, marked=True, top=3)[0] == contrast(*setting(), WITH, WITHOUT, top=3)[0]
    with pytest.raises(ValueError, match="nothing is marked in 'w0 "):
        contrast(*setting(), [*MARKED[:4], WITH[5]], WITHOUT, marked=True)
    with pytest.raises(ValueError, match="differ in their marks alone"):
        contrast(*setting(), [*MARKED, whole[0]], WITHOUT, marked=True)
    first = [f"<<{text[:2]}>>{text[2:]}" for text in WITH]
    with pytest.raises(ValueError, match="what is marked in the text 'w0 .* has no token that counts"):
        contrast(*setting(), first, WITHOUT, marked=True)
