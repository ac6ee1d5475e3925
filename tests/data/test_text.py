import bz2
import csv
import gzip
import json
import lzma
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from hfsae.data import load_text

TEXTS = ["The first text.", "The second text,\nin two lines.", "", "Ünïcödé."]


def write_jsonl(path, texts=TEXTS):
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))


def write_parquet(path, texts=TEXTS):
    Dataset.from_dict({"text": texts}).to_parquet(path)


def write_arrow(path, texts=TEXTS):
    folder = path.parent / "saved"
    Dataset.from_dict({"text": texts}).save_to_disk(folder)
    (folder / "data-00000-of-00001.arrow").rename(path)


def write_csv(path, texts=TEXTS):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["n", "text"], *([i, text or None] for i, text in enumerate(texts))])


def compressed(opener):
    def write(path, texts=TEXTS):
        with opener(path, "wt", encoding="utf-8") as file:
            file.write("\n".join(json.dumps({"text": text}) for text in texts))

    return write


WRITERS = {
    "data.jsonl": write_jsonl,
    "data.json": write_jsonl,
    "data.parquet": write_parquet,
    "data.arrow": write_arrow,
    "data.csv": write_csv,
    "data.jsonl.gz": compressed(gzip.open),
    "data.json.bz2": compressed(bz2.open),
    "data.jsonl.xz": compressed(lzma.open),
}


def texts_of(dataset):
    return [row["text"] for row in dataset]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_gives_a_document_a_row(tmp_path, name, streaming):
    WRITERS[name](tmp_path / name)
    dataset = load_text(tmp_path / name, streaming=streaming)
    assert isinstance(dataset, IterableDataset if streaming else Dataset)
    assert [text or "" for text in texts_of(dataset)] == TEXTS


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_gives_all_its_files(tmp_path, streaming):
    write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    write_jsonl(tmp_path / "b.jsonl", ["three"])
    (tmp_path / "LICENSE").write_text("not data")
    assert texts_of(load_text(str(tmp_path), streaming=streaming)) == ["one", "two", "three"]
    assert texts_of(load_text(tmp_path, data_files="b.*", streaming=streaming)) == ["three"]


def test_a_folder_may_name_its_splits(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ["one", "two"])
    write_jsonl(tmp_path / "validation.jsonl", ["three"])
    assert texts_of(load_text(tmp_path, split="validation")) == ["three"]
    assert texts_of(load_text(tmp_path, split="train[:1]")) == ["one"]
    with pytest.raises(ValueError, match="test"):
        load_text(tmp_path, split="test")


def test_a_folder_of_several_kinds_asks_which(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["one"])
    write_parquet(tmp_path / "b.parquet", ["two"])
    with pytest.raises(ValueError, match=r"\.jsonl, \.parquet.*data_files"):
        load_text(tmp_path)
    assert texts_of(load_text(tmp_path, data_files="*.parquet")) == ["two"]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_saved_dataset_is_read_back(tmp_path, streaming):
    dataset = Dataset.from_dict({"text": TEXTS})
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"train": dataset, "test": dataset.select([1])}).save_to_disk(tmp_path / "many")
    assert texts_of(load_text(tmp_path / "one", streaming=streaming)) == TEXTS
    assert texts_of(load_text(tmp_path / "many", split="test", streaming=streaming)) == TEXTS[1:2]
    with pytest.raises(ValueError, match="'dev'.*'train', 'test'"):
        load_text(tmp_path / "many", split="dev")


@pytest.mark.parametrize("streaming", [False, True])
def test_passages_are_the_file_cut_at_empty_lines(tmp_path, streaming):
    paragraph = "A line of a paragraph, hard-wrapped.\n" * 20 + " \n"
    (tmp_path / "book.txt").write_text("\n" + paragraph * 30 + "The end, without a line break.")
    passages = texts_of(load_text(tmp_path / "book.txt", streaming=streaming))
    assert "".join(passages) == (tmp_path / "book.txt").read_text()
    assert len(passages) > 5
    assert all(2000 <= len(passage) < 4000 and passage.endswith("\n \n") for passage in passages[:-1])


def test_a_text_file_can_be_cut_in_other_ways(tmp_path):
    (tmp_path / "book.txt").write_text("one\ntwo\n\nthree\n")
    read = {by: texts_of(load_text(tmp_path, sample_by=by)) for by in ("line", "paragraph", "document")}
    assert read["line"] == ["one", "two", "", "three"]
    assert read["paragraph"] == ["one\ntwo", "three\n"]
    assert read["document"] == ["one\ntwo\n\nthree\n"]
    with pytest.raises(ValueError, match="'page'"):
        load_text(tmp_path, sample_by="page")


def test_sample_by_is_refused_where_it_means_nothing(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"for \.txt files"):
        load_text(tmp_path / "a.jsonl", sample_by="line")


@pytest.mark.parametrize("streaming", [False, True])
def test_the_standard_library_is_a_dataset(streaming):
    held_out = load_text("python-stdlib", split="held_out", streaming=streaming)
    assert "def " in next(iter(held_out))["text"]
    with pytest.raises(ValueError, match="'train', 'held_out'"):
        load_text("python-stdlib", split="test")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_on_the_hub_is_loaded_by_name(hub, streaming):
    Dataset.from_dict({"text": TEXTS}).push_to_hub("tester/texts", "small", split="train")
    dataset = load_text("tester/texts", config="small", streaming=streaming)
    assert texts_of(dataset) == TEXTS
    with pytest.raises(ValueError, match="nowhere"):
        load_text("tester/texts", config="small", split="nowhere")


def test_a_name_that_nobody_has_is_an_error_that_says_where_it_looked(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no-such-data.*Hub"):
        load_text("tester/no-such-data")


@pytest.mark.parametrize("name", ["./texts", "a/b/c", "texts.jsonl", "~/no/such/folder"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or folder /"):
        load_text(name)


def test_files_of_unknown_kinds_are_errors(tmp_path):
    (tmp_path / "book.pdf").write_text("")
    with pytest.raises(ValueError, match=r"book\.pdf.*\.txt"):
        load_text(tmp_path / "book.pdf")
    with pytest.raises(FileNotFoundError, match="save_to_disk"):
        load_text(tmp_path)


def test_importing_the_package_does_not_import_datasets():
    code = "import sys, hfsae.data; assert 'datasets' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
