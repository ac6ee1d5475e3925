import pytest
import torch
from datasets import Dataset, DatasetDict

from hfsae.data import TokenBlocks
from hfsae.inputs.text_splits import load_texts
from tests.data.tiny import chat_tokenizer
from tests.training.tiny import arguments, text


def texts(dataset, eval_dataset=None, **options):
    return load_texts(arguments("unused", **options), dataset, eval_dataset)


def test_the_parts_of_a_text_share_no_document_and_leave_none_out():
    parts = texts(text(), eval_tokens=10)
    documents = [set(part["text"]) for part in (parts.train, parts.calibration, parts.evaluation)]
    assert sum(map(len, documents)) == len(set.union(*documents)) == len(set(text()["text"]))


def test_text_to_evaluate_on_that_is_given_is_taken_whole_and_none_is_looked_for_where_evaluation_is_off():
    given = text(20)
    assert texts(text(), given, eval_tokens=10).evaluation is given
    assert texts(text(), eval_tokens=0).evaluation is None


def test_the_parts_of_a_table_of_token_ids_are_its_last_rows():
    ids = torch.arange(1000).view(100, 10)
    parts = texts(ids, eval_tokens=10)
    assert torch.equal(torch.cat([parts.train, parts.calibration, parts.evaluation]), ids)
    assert len(parts.calibration) == len(parts.evaluation) == 2
    with pytest.raises(ValueError, match="2 rows of token ids are too few"):
        texts(ids[:2])


def test_documents_are_dealt_by_the_column_that_is_read():
    documents = text()["text"]
    two = Dataset.from_dict({"title": ["same"] * len(documents), "body": documents})
    parts = texts(two, text_column="body", eval_tokens=10)
    assert 0 < len(parts.calibration) < 30 and 0 < len(parts.evaluation) < 30
    with pytest.raises(ValueError, match="give text_column"):
        texts(two)


def test_conversations_and_token_ids_are_dealt_too():
    said = [[{"role": "user", "content": d}, {"role": "assistant", "content": "w1 w2"}] for d in text()["text"]]
    chats = texts(Dataset.from_dict({"messages": said}), chat=True)
    assert 0 < len(chats.calibration) < len(chats.train)
    batch = next(TokenBlocks(chats.train, chat_tokenizer(), context_length=40, batch_size=3, chat=True))
    assert batch.keep.any()
    ids = texts(Dataset.from_dict({"input_ids": [[i, i + 1, i + 2] for i in range(300)], "text": ["x"] * 300}))
    assert 0 < len(ids.calibration) < len(ids.train)


def test_named_text_is_loaded(tmp_path):
    for split, begin in (("train", 0), ("test", 1000)):
        Dataset.from_dict({"text": [f"w{i}" for i in range(begin, begin + 300)]}).to_json(tmp_path / f"{split}.jsonl")
    options = {"dataset_name": str(tmp_path), "eval_dataset_name": str(tmp_path), "eval_tokens": 10}
    parts = texts(None, **options)
    assert len(parts.train) > len(parts.calibration) > 0 and parts.digest is None
    assert parts.evaluation["text"][0] == "w1000" and "w1000" not in parts.train["text"]


def test_text_that_is_none_or_a_list_is_refused():
    with pytest.raises(ValueError, match="no text to train on: give dataset_name"):
        texts(None)
    with pytest.raises(TypeError, match="train_dataset is a list.*Dataset.from_dict"):
        texts(["w1 w2"])
    splits = DatasetDict(test=Dataset.from_dict({"text": ["w1 w2"]}))
    with pytest.raises(TypeError, match=r"eval_dataset is a DatasetDict.*one of its splits \('test'\)"):
        texts(text(), eval_dataset=splits)


def test_the_shares_are_those_of_the_arguments():
    shares = {"calibration_share": 0.2, "evaluation_share": 0.3, "eval_tokens": 10}
    parts = texts(text(), **shares)
    assert [len(part) / 300 for part in (parts.calibration, parts.evaluation)] == pytest.approx([0.2, 0.3], abs=0.08)
    ids = texts(torch.arange(1000).view(100, 10), **shares)
    assert [len(part) for part in (ids.train, ids.calibration, ids.evaluation)] == [50, 20, 30]


def test_what_is_recorded_names_the_text_that_is_read(tmp_path):
    for name in ("a", "b"):
        Dataset.from_dict({"text": [f"w{i}" for i in range(300)]}).to_json(tmp_path / f"{name}.jsonl")
    args = {"dataset_name": str(tmp_path), "dataset_data_files": "a.jsonl", "eval_tokens": 10}
    told = texts(None, **args).protocol(arguments("unused", **args))
    named = {"dataset": str(tmp_path), "data_files": "a.jsonl", "split": "train"}
    assert told == {**told, **named, "part": "evaluation", "max_tokens": 10}
    calibration = told["calibration"]
    assert calibration == {**calibration, **named, "part": "calibration", "max_tokens": 128}


def test_a_text_to_evaluate_on_that_came_as_an_object_is_recorded_under_no_name(tmp_path):
    Dataset.from_dict({"text": [f"w{i}" for i in range(300)]}).to_json(tmp_path / "a.jsonl")
    args = {"dataset_name": str(tmp_path / "a.jsonl"), "eval_tokens": 10}
    told = texts(None, text(20), **args).protocol(arguments("unused", **args))
    assert "dataset" not in told and "part" not in told and told["calibration"]["part"] == "calibration"
