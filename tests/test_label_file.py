import json

import numpy as np
import pytest

from hfsae.label_file import Label, Score, labels_beside, read_label_records, read_labels, write_labels


def test_labels_come_back_in_order_without_those_that_are_empty(tmp_path):
    write_labels(tmp_path / "labels.json", {17: "inside a docstring", 3: "ä </script>", 5: ""}, "abc")
    assert list(read_labels(tmp_path / "labels.json", "abc").items()) == [
        (3, "ä </script>"),
        (17, "inside a docstring"),
    ]


def test_labels_that_are_left_out_are_told(tmp_path, caplog):
    assert labels_beside(tmp_path, "abc") == {} and not caplog.records
    (tmp_path / "labels.json").write_text('{"17": "written by hand"}')
    assert labels_beside(tmp_path, "abc") == {}
    assert "labels are left out" in caplog.text and "does not hold labels; expected" in caplog.text


def test_labels_of_other_weights_are_refused(tmp_path):
    write_labels(tmp_path / "labels.json", {1: "x"}, "a" * 64)
    assert read_labels(tmp_path / "labels.json") == {1: "x"}
    with pytest.raises(ValueError, match="other weights .*aaaaaaaaaaaa"):
        read_labels(tmp_path / "labels.json", "b" * 64)
    assert labels_beside(tmp_path, "a" * 64) == {1: Label("x")}
    assert labels_beside(tmp_path, "b" * 64) == {} == labels_beside(tmp_path / "elsewhere", "b" * 64)


def test_labels_of_other_settings_are_refused(tmp_path):
    path, now = tmp_path / "labels.json", {"k": 4, "hook_point": "h.1", "a_later_field": None}
    write_labels(path, {1: "x"}, "abc", {"k": 32, "hook_point": "h.1"})
    assert json.loads(path.read_text())["settings"] == {"k": 32, "hook_point": "h.1"}
    with pytest.raises(ValueError, match=r"labels of other settings than these \(k was 32 and is 4\): "):
        read_labels(path, "abc", now)
    assert labels_beside(tmp_path, "abc", now) == {}
    # Neither who has no settings in hand nor a file of an earlier version knows of a change.
    assert read_labels(path, "abc") == read_labels(path) == read_labels(path, "abc", now | {"k": 32}) == {1: "x"}
    write_labels(path, {1: "x"}, "abc")
    assert read_labels(path, "abc", now) == {1: "x"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "does not hold labels"),
        ('{"17": "x"}', "does not hold labels"),
        ('{"format": 1, "weights_sha256": "abc", "labels": ["x"]}', "does not hold labels"),
        ('{"format": 1, "weights_sha256": "abc", "labels": {"17": 3}}', "feature 17 has the label 3"),
        ('{"format": 9, "weights_sha256": "abc", "labels": {}}', "format 9"),
        (
            '{"format": 1, "weights_sha256": "abc", "labels": {"1": "x"}, "explained": {"1": 5}}',
            "does not hold labels",
        ),
        (
            '{"format": 1, "weights_sha256": "abc", "labels": {"1": "x"}, "explained": {"1": {"model": 5}}}',
            "feature 1's label",
        ),
        (
            '{"format": 1, "weights_sha256": "abc", "labels": {"1": "x"}, '
            '"explained": {"1": {"model": "m", "scores": {"detection_random": {"accuracy": "high"}}}}}',
            "feature 1's label",
        ),
    ],
)
def test_what_is_no_file_of_labels_is_refused(tmp_path, content, message):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "labels.json")


def test_the_file_is_readable_json(tmp_path):
    write_labels(tmp_path / "labels.json", {2: "x"}, "abc")
    content = json.loads((tmp_path / "labels.json").read_text())
    assert content == {"format": 1, "weights_sha256": "abc", "labels": {"2": "x"}}


def test_what_a_model_wrote_comes_back_with_its_scores(tmp_path):
    labels = {
        2: Label("x"),
        3: Label("y", "org/chat", "0123abcd", {"detection_random": Score(0.75, 0.5, 0.9, 10, 12, 3)}),
    }
    write_labels(tmp_path / "labels.json", labels, "abc")
    assert read_label_records(tmp_path / "labels.json", "abc") == labels
    assert str(labels[3].scores["detection_random"]) == "0.75 (0.50 to 0.90)"
    # A person changed one: the page keeps the text and drops what was said of the other.
    assert read_labels(tmp_path / "labels.json") == {2: "x", 3: "y"}


@pytest.mark.parametrize("labels", [{-1: "x"}, {3: None}, {"3": "x"}, {True: "x"}, {3: Label(None)}])
def test_what_could_not_be_read_again_is_not_written(tmp_path, labels):
    write_labels(tmp_path / "labels.json", {3: "kept"}, "abc")
    with pytest.raises(ValueError, match="expected a number from 0 on, and a text"):
        write_labels(tmp_path / "labels.json", labels, "abc")
    assert read_labels(tmp_path / "labels.json") == {3: "kept"}
    write_labels(tmp_path / "labels.json", {np.int64(4): "of numpy"}, "abc")
    assert read_labels(tmp_path / "labels.json") == {4: "of numpy"}
