import json
from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hfsae.scores.document_sets import BUILT_IN, _parted, labelled_dataset, make_set


def sources(label: str, n: int, lines: int = 30) -> list[tuple[str, str, str]]:
    texts = ["".join(f"{label} {i} line {j} of some words\n" for j in range(lines)) for i in range(n)]
    return [(f"{label}{i}", label, text) for i, text in enumerate(texts)]


def test_documents_are_on_one_side_whole():
    found = make_set("kind", [*sources("a", 40), *sources("b", 40)])
    sides = {}
    for document in found.documents:
        assert sides.setdefault(document.source, document.is_train) == document.is_train
        assert document.text.startswith(document.label) and document.label in document.source
    share = sum(sides.values()) / len(sides)
    assert found.classes == ["a", "b"] and len(sides) == 80 and 0.5 < share < 0.9


def test_equal_documents_count_once_and_of_several_labels_not_at_all(caplog):
    alone = [*sources("a", 40), *sources("b", 40)]
    again = [(f"again {source}", label, f"{text}\n") for source, label, text in alone]
    both = [("x", "a", "a text with two labels " * 30), ("y", "b", "a text with two labels " * 30)]
    found = make_set("kind", [*alone, *again, *both])
    assert found.documents == make_set("kind", alone).documents
    assert len({one.text for one in found.documents}) == len(found.documents)
    assert "left out: 80 documents that are as another one of their label, and 2 whose text has several" in caplog.text


def test_a_passage_that_many_documents_have_is_not_measured_on_where_it_is_fitted_on(caplog):
    """Half of the documents of a begin with one licence, which is a passage of its own."""
    licence = "a permission that is granted free of charge to any person\n" * 11
    alone = [*sources("a", 40), *sources("b", 40)]
    licensed = [
        (name, label, (licence if i % 2 and i < 40 else "") + text) for i, (name, label, text) in enumerate(alone)
    ]
    found = make_set("kind", licensed)
    train, held_out = ([one.text for one in found.documents if one.is_train == side] for side in (True, False))
    assert licence in train and not set(train) & set(held_out) and len(held_out) > 20
    assert "passages to measure on that are near copies of fitted ones" in caplog.text


def test_passages_of_one_template_are_not_measured_on():
    """Names differ in every document: no two passages are equal, and half of the runs of eight words are."""
    alone = [*sources("a", 40), *sources("b", 40)]
    lines = "the template says the same of every operator that it is made for, and so"
    made = [
        (name, label, f"{lines} {name}{i}\n" * 7 if label == "a" and i % 2 else text)
        for i, (name, label, text) in enumerate(alone)
    ]
    found = make_set("kind", made)
    templated = [one for one in found.documents if one.text.startswith(lines)]
    assert len(templated) > 5 and all(one.is_train for one in templated)
    assert len({one.text for one in templated}) == len(templated)
    assert sum(not one.is_train for one in found.documents) > 20


def test_few_long_documents_are_cut_and_share_no_text():
    found = make_set("book", [*sources("a", 1, lines=400), *sources("b", 2, lines=400)])
    assert found.classes == ["a", "b"]
    for label in found.classes:
        own = [one for one in found.documents if one.label == label]
        train, held_out = ({one.text for one in own if one.is_train == side} for side in (True, False))
        assert len(train) > len(held_out) > 2 and not train & held_out


def test_no_class_and_no_document_outweighs_the_others():
    found = make_set("kind", [*sources("a", 12, lines=2000), *sources("b", 300)])
    assert max(Counter(one.label for one in found.documents).values()) <= 240
    assert max(Counter(one.source for one in found.documents).values()) <= 4


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        ([], "kind: 0 classes; a probe needs two"),
        (sources("a", 20), "kind: 1 classes, 'a'; a probe needs two"),
        ([("x", "a", ""), *sources("b", 20)], "kind: 1 classes, 'b'"),
        ([*sources("a", 1, lines=5), *sources("b", 1, lines=5)], "kind: too little text"),
    ],
)
def test_labels_that_tell_nothing_apart_are_refused(labelled, message):
    with pytest.raises(ValueError, match=message):
        make_set("kind", labelled)


def test_a_dataset_with_a_column_of_labels(tmp_path):
    rows = [{"text": text, "kind": label} for _, label, text in [*sources("a", 20), *sources("b", 20)]]
    rows += [{"text": "no label", "kind": None}]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = labelled_dataset(str(tmp_path / "set.jsonl"), "kind")
    assert found.name == "kind of set.jsonl" and found.classes == ["a", "b"]
    with pytest.raises(ValueError, match="no column 'label' of labels; it has 'text', 'kind'"):
        labelled_dataset(str(tmp_path / "set.jsonl"), "label")


def test_short_texts_are_kept_and_the_split_is_the_one_asked_for(tmp_path):
    for split, words in (("train", ("good", "bad")), ("validation", ("red", "blue"))):
        rows = [{"text": f"a {word} one, number {i}", "label": word} for i in range(60) for word in words]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = labelled_dataset(str(tmp_path), "label", split="validation")
    assert found.classes == ["blue", "red"] and len(found.documents) == 120
    assert all(len(one.text) < 40 for one in found.documents)
    assert labelled_dataset(str(tmp_path), "label").classes == ["bad", "good"]


def test_labels_that_are_no_classes_are_refused(tmp_path):
    for name, label in (("lists", [1, 2]), ("scores", 3.5)):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps({"text": "some words", "label": label}) + "\n") * 40)
        with pytest.raises(ValueError, match="expected one label a row, as text, whole number or yes and no"):
            labelled_dataset(str(tmp_path / f"{name}.jsonl"), "label")


def test_classes_that_are_left_out_are_told(caplog):
    found = make_set("kind", [one for number in range(14) for one in sources(f"c{number:02}", 12, lines=30 - number)])
    assert len(found.classes) == 12
    assert "kind: left out, since others are larger or too little text is theirs: 'c12', 'c13'" in caplog.text


def test_names_of_classes_are_used(tmp_path):
    labelled = [*sources("a", 20), *sources("b", 20)]
    features = Features({"label": ClassLabel(names=["cat", "dog"]), "text": Value("string")})
    columns = {"label": [int(label == "b") for _, label, _ in labelled], "text": [text for *_, text in labelled]}
    Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "saved")
    assert labelled_dataset(str(tmp_path / "saved"), "label").classes == ["cat", "dog"]


def test_minus_1_is_a_label_unless_classes_have_names(tmp_path):
    rows = [
        {"text": text, "label": {"a": -1, "b": 1}[label]} for _, label, text in [*sources("a", 20), *sources("b", 20)]
    ]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert labelled_dataset(str(tmp_path / "set.jsonl"), "label").classes == ["-1", "1"]


def test_docstrings_and_code_are_parted():
    text = '"""What it is."""\nimport os\n\n\ndef f(x):\n    """Says x."""\n    return x  # said\n'
    assert _parted(text) == ("What it is.\n\nSays x.", "import os\n\n\ndef f(x):\n    return x  # said\n")
    assert _parted("def (:") == ("", "def (:")


def test_the_sets_that_come_along_have_both_sides_of_every_class():
    found = BUILT_IN["code or docstring"]()
    assert found.classes == ["code", "docstring"]
    assert min(Counter((one.label, one.is_train) for one in found.documents).values()) >= 30
    assert not any('"""' in one.text for one in found.documents if one.label == "docstring")


@pytest.mark.slow
def test_languages_and_packages():
    assert BUILT_IN["language of a file"]().classes == ["C++", "Python", "prose"]
    found = BUILT_IN["package of a file"]()
    assert len(found.classes) >= 6 and all(one.source.split("/")[0] == one.label for one in found.documents)
