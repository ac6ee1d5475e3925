import re

import numpy as np
import pytest

from hfsae.scores.concepts import PYTHON_CONCEPTS, FirstLetters, PatternLabels, read_concepts

TEXT = (
    'class Snake(Base):\n    """Says\n    s."""\n\n    def tail(self, n=3):\n        return self.body[n] is not None\n'
)


def cut(text: str, size: int = 3) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_token_is_labelled_by_its_last_character(size):
    """Character by character, with re alone."""
    tokens = cut(TEXT, size)
    labels = PatternLabels(PYTHON_CONCEPTS)(tokens)
    ends = np.cumsum([len(token) for token in tokens]) - 1
    for column, pattern in enumerate(PYTHON_CONCEPTS.values()):
        spans = [m.span(1 if m.re.groups else 0) for m in re.finditer(pattern, TEXT, re.M)]
        assert labels[:, column].tolist() == [any(start <= end < stop for start, stop in spans) for end in ends]
    assert labels.any(0).sum() >= 6


def test_a_group_that_takes_no_part_labels_nothing():
    assert not PatternLabels({"a": "x|(y)"})(["x"]).any()


def test_first_letters_are_those_of_words():
    names = FirstLetters().names
    tokens = ["", "Some", " Hat", "ter", "s", " a", " 4th", "_bar", "", ".map(x"]
    found = [[names[i][-1] for i in row.nonzero()[0]] for row in FirstLetters()(tokens)]
    assert found == [[], ["s"], ["h"], [], [], [], ["t"], ["b"], [], ["m"]]


def test_of_two_words_in_a_token_the_first_counts():
    assert FirstLetters()(["up down"]).sum() == 1 and FirstLetters()(["up down"])[0, 20]


def test_concepts_come_from_a_file(tmp_path):
    (tmp_path / "a.json").write_text('{"digit": "[0-9]"}')
    assert read_concepts(tmp_path / "a.json")(["a", "1"]).tolist() == [[False], [True]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[1]", "holds no concepts"),
        ('{"a": "("}', "no regular expression"),
        ('{"a": 1}', "no regular expression"),
        ("{}", "no concepts"),
    ],
)
def test_files_that_hold_no_concepts_are_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_concepts(tmp_path / "a.json")
