"""Files as people have them: beyond links, in parts empty, or broken in one line, which is named."""

import gzip
import json

import pytest

from hfsae.data import TokenBlocks, load_text, split_documents
from hfsae.data.text import only_split
from tests.data.tiny import pythia_like

ROW = json.dumps({"text": "w1 w2"})


def rows(name="text", *values):
    return "".join(json.dumps({name: value}) + "\n" for value in values)


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_behind_links_are_read_and_a_circle_of_links_ends(tmp_path, streaming):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "b.jsonl").write_text(rows("text", "two", "three"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text(rows("text", "one"))
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert only_split(tmp_path / "data") == "train"
    found = load_text(tmp_path / "data", streaming=streaming)
    assert sorted(row["text"] for row in found) == ["one", "three", "two"]
    (tmp_path / "whole").symlink_to(tmp_path / "elsewhere" / "deep")
    assert sorted(row["text"] for row in load_text(tmp_path / "whole", streaming=streaming)) == ["three", "two"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            f'{ROW}\n{ROW}\n{{"text": "cut\n{ROW}\n',
            r"a\.jsonl, line 3: not JSON \(Invalid control character",
        ),
        ("a.jsonl", f"{ROW}\nnonsense\n", r"a\.jsonl, line 2: not JSON"),
        ("a.json", '[{"text": "a"},\n{"text": }]', r"a\.json, line 2: not JSON"),
        ("a.txt", b"well\nhall\xf6chen\n", r"a\.txt, line 2: not UTF-8"),
        ("a.csv", "text\na\nb,c,d\n", r"a\.csv: .*line 3"),
        ("a.jsonl", "", r"a\.jsonl is empty"),
        ("a.csv", "", r"a\.csv is empty"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path, name, content, said):
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for place in (path, path.parent):
        with pytest.raises(ValueError, match=said):
            load_text(place)


def test_the_broken_line_of_a_compressed_file_is_named(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(f"{ROW}\nnonsense\n")
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz, line 2: not JSON"):
        load_text(tmp_path / "a.jsonl.gz")


def test_a_document_of_other_bytes_than_utf_8_is_shown_before_anything_is_trained(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(rows("text", *["w1 w2"] * 40).encode() + b'{"text": "hall\xf6chen"}\n')
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"in the column 'text' is not UTF-8: b'hall\\xf6chen'"):
            list(split_documents(load_text(tmp_path / "a.jsonl", streaming=streaming), "train"))


def test_an_empty_file_beside_others_does_no_harm(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text(rows("text", "one"))
    assert load_text(tmp_path)["text"][:] == ["one"]


def test_a_stream_tells_after_how_many_documents_it_broke(tmp_path):
    (tmp_path / "a.jsonl").write_text(rows("text", *["w1 w2"] * 40))
    (tmp_path / "b.jsonl").write_text("nonsense\n")
    blocks = TokenBlocks(load_text(tmp_path, streaming=True), pythia_like(), context_length=3, batch_size=2)
    with pytest.raises(ValueError, match="the stream of text broke after 40 documents: JSON parse error"):
        for _ in range(100):
            next(blocks)
