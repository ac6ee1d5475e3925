"""One value names a text whole: what it loads, what records of it say, and what earlier records say."""

import json
from dataclasses import fields

import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi

from hfsae.data import TextSource, split_documents
from hfsae.data.text_source import ARGUMENTS
from hfsae.training import SAETrainingArguments


def write(path, *texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_every_field_has_a_training_argument_with_the_same_default():
    arguments = SAETrainingArguments(dataset_name="mine")
    told = TextSource.of_arguments(vars(arguments))
    assert told == TextSource(dataset="mine", split="train")
    assert {f.name for f in fields(TextSource)} == {*ARGUMENTS, "part"}


def test_what_differs_from_the_defaults_alone_names_the_same_text():
    arguments = SAETrainingArguments(
        dataset_name="d", dataset_data_files="a.*", dataset_revision="v1", streaming=True, text_column="body",
        chat=True, assistant_only=False, mix_documents=False, evaluation_share=0.1,
    )  # fmt: skip
    whole = TextSource.of_arguments(vars(arguments))
    assert TextSource.of_arguments(arguments.given()) == whole
    assert (whole.data_files, whole.dataset_revision, whole.streaming) == ("a.*", "v1", True)
    assert whole.reading == {"text_column": "body", "chat": True, "assistant_only": False, "mix_documents": False}
    assert whole.shares == pytest.approx({"train": 0.88, "calibration": 0.02, "evaluation": 0.1})


@pytest.mark.parametrize("files", [None, "a.*", ("a.jsonl", "b.jsonl")])
def test_a_record_gives_the_source_back_through_json(files):
    source = TextSource(dataset="d", split="train", part="evaluation", data_files=files, text_column="body")
    record = json.loads(json.dumps({**source.recorded(), "n_tokens": 3}))
    assert TextSource.of_record(record, {"text_column": "another", "dataset_revision": "v2"}) == source


def test_an_earlier_versions_record_is_completed_by_the_training_arguments():
    arguments = {"dataset_name": "d", "dataset_data_files": "a.jsonl", "dataset_revision": "v1", "chat": True}
    record = {"dataset": "d", "dataset_config": None, "split": "train", "part": "evaluation"}
    held_out = TextSource.of_record(record, arguments)
    assert (held_out.data_files, held_out.dataset_revision, held_out.chat) == ("a.jsonl", "v1", True)
    other = TextSource.of_record({"dataset": "other", "split": "test", "part": None}, arguments)
    assert other == TextSource(dataset="other", split="test", chat=True)


def test_its_documents_are_those_of_the_files_and_the_part(tmp_path):
    write(tmp_path / "a.jsonl", *(f"a{i}" for i in range(300)))
    write(tmp_path / "b.jsonl", *(f"b{i}" for i in range(300)))
    source = TextSource(dataset=str(tmp_path), data_files="a.jsonl", split="train", part="evaluation")
    expected = split_documents(Dataset.from_dict({"text": [f"a{i}" for i in range(300)]}), "evaluation")["text"][:]
    assert [row["text"] for row in source.documents()] == expected
    larger = TextSource(dataset=str(tmp_path), split="train", part="evaluation", evaluation_share=0.5)
    assert 250 < len(larger.documents()) < 350


def test_the_split_that_nobody_named_is_the_only_one_or_test(tmp_path):
    write(tmp_path / "a.jsonl", "one")
    assert TextSource(dataset=str(tmp_path / "a.jsonl")).resolved().split == "train"
    dataset = Dataset.from_dict({"text": ["a"]})
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"train": dataset, "test": dataset}).save_to_disk(tmp_path / "two")
    DatasetDict({"train": dataset, "dev": dataset}).save_to_disk(tmp_path / "three")
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.jsonl", "one")
    write(tmp_path / "folder" / "test.jsonl", "two")
    found = {name: TextSource(dataset=str(tmp_path / name)).resolved() for name in ("one", "two", "folder")}
    assert {name: source.split for name, source in found.items()} == {"one": "train", "two": "test", "folder": "test"}
    assert found["folder"].load()["text"][:] == ["two"]
    with pytest.raises(ValueError, match="the splits 'train', 'dev': name one"):
        TextSource(dataset=str(tmp_path / "three")).resolved()
    assert TextSource(dataset="python-stdlib").resolved().split == "held_out"


def test_a_text_of_the_hub_is_held_fast_at_its_commit(hub):
    Dataset.from_dict({"text": ["then"]}).push_to_hub("tester/texts")
    source = TextSource(dataset="tester/texts").resolved()
    assert (source.split, source.dataset_revision) == ("train", HfApi().dataset_info("tester/texts").sha)
    Dataset.from_dict({"text": ["now", "later"]}).push_to_hub("tester/texts")
    assert source.load()["text"][:] == ["then"]
    assert TextSource(dataset="tester/texts").resolved().load()["text"][:] == ["now", "later"]


def test_a_text_that_came_as_an_object_cannot_be_loaded():
    with pytest.raises(ValueError, match="came as an object"):
        TextSource().load()
    assert TextSource().resolved() == TextSource()
