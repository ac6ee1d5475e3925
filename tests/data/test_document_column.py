"""What documents are is told by the type of their column, whatever its name."""

import pytest
from datasets import Dataset, DatasetDict

from hfsae import SAETrainingArguments, evaluate_sae
from hfsae.data import DatasetActivations, DocumentColumn, TokenBlocks, find_document_column, split_documents
from hfsae.inputs.text_splits import load_texts
from tests.analysis.tiny import setting
from tests.data.tiny import pythia_like

SAID = [[{"role": "user", "content": "a"}]]
SHAREGPT = [[{"from": "human", "value": "a"}]]


def forms(columns):
    """A table, a stream that knows its types, and one that does not."""
    table = Dataset.from_dict(columns)
    return (
        table,
        table.to_iterable_dataset(),
        table.to_iterable_dataset().map(lambda row: row),
        table.with_format("torch"),
    )


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"text": ["a"], "title": ["b"]}, {}, DocumentColumn("text", "text")),
        ({"id": [1], "content": ["a"]}, {}, DocumentColumn("text", "content")),
        ({"title": ["a"], "body": ["b"]}, {"text_column": "body"}, DocumentColumn("text", "body")),
        ({"tokens": [[1, 2]]}, {}, DocumentColumn("ids", "tokens")),
        ({"tokens": [[1, 2]], "title": ["a"]}, {"text_column": "tokens"}, DocumentColumn("ids", "tokens")),
        ({"input_ids": [[1]], "text": ["a"]}, {}, DocumentColumn("ids", "input_ids")),
        ({"input_ids": [[1]]}, {"text_column": "input_ids"}, DocumentColumn("ids", "input_ids")),
        ({"tokens": [[1]], "attention_mask": [[1]]}, {}, DocumentColumn("ids", "tokens", "attention_mask")),
        ({"messages": SAID}, {}, DocumentColumn("chat", "messages")),
        ({"messages": SAID, "text": ["a"]}, {"chat": True}, DocumentColumn("chat", "messages")),
        ({"messages": SAID, "text": ["a"]}, {"chat": None}, DocumentColumn("chat", "messages")),
        ({"messages": SAID, "text": ["a"]}, {}, DocumentColumn("text", "text")),
        ({"text": ["a"]}, {"chat": None}, DocumentColumn("text", "text")),
        ({"conversations": SHAREGPT, "id": ["x"]}, {"chat": True}, DocumentColumn("chat", "conversations")),
        ({"said": SHAREGPT, "id": ["x"]}, {"text_column": "said"}, DocumentColumn("chat", "said")),
        ({"text": [None, "a"], "n": [1, 2]}, {}, DocumentColumn("text", "text")),
    ],
)  # fmt: skip
def test_documents_are_found_and_told_by_their_type(columns, options, expected):
    for dataset in forms(columns):
        assert find_document_column(dataset, **options) == expected


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"title": ["a"], "body": ["b"]}, {}, r"'title' \(texts\), 'body' \(texts\); several.*give text_column"),
        ({"id": ["a"], "tokens": [[1]]}, {}, r"several could be the one of documents: give text_column"),
        ({"id": ["a"], "messages": SAID, "to": ["b"]}, {"text_column": "body"}, "'body' is not among them"),
        ({"id": [1], "labels": [[1]]}, {}, "none is one of documents"),
        ({"id": [1], "text": ["a"]}, {"text_column": "id"}, "the column 'id' holds int"),
        ({"x": [[0.5]]}, {"text_column": "x"}, "the column 'x' holds lists of float"),
        ({"text": ["a"]}, {"chat": True}, "none is one of conversations"),
        ({"text": ["a"]}, {"chat": True, "text_column": "text"}, "chat=True, but the column 'text' holds texts"),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_refused_with_the_columns_there_are(columns, options, said):
    for dataset in forms(columns):
        with pytest.raises(ValueError, match=said):
            find_document_column(dataset, **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            DatasetDict(train=Dataset.from_dict({"text": ["a"]})),
            "is a DatasetDict: .* one of its splits \\('train'\\)",
        ),
        (["a", "b"], "is a list: expected a Dataset or an IterableDataset; make a dataset of a list with Dataset"),
        ("a.jsonl", "is a str: expected a Dataset"),
        (None, "is a NoneType: expected a Dataset"),
    ],
)
def test_what_is_no_dataset_is_refused_wherever_text_is_read(given, message):
    for read in (find_document_column, lambda data: split_documents(data, "train"), blocks_of, trained_on):
        if given is None and read is trained_on:
            continue  # the arguments may name a text
        with pytest.raises(TypeError, match=message):
            read(given)
    if not isinstance(given, list):
        with pytest.raises(TypeError, match=f"data is a {type(given).__name__}; expected texts in a list"):
            evaluate_sae(*setting()[:2], given, setting()[2])


def test_a_transform_that_would_be_passed_by_is_refused_wherever_rows_are_read():
    words = [f"w{number % 30} w{number % 7} w{number // 30}" for number in range(400)]
    data = Dataset.from_dict({"text": words, "a": [[1.0, 2.0]] * len(words)})
    shouting = data.with_transform(lambda rows: {"text": [text.upper() for text in rows["text"]], "a": rows["a"]})
    for read in (find_document_column, lambda data: split_documents(data, "train"), blocks_of, trained_on):
        read(data)
        with pytest.raises(ValueError, match="has a transform .*: make its rows with map"):
            read(shouting)
    with pytest.raises(ValueError, match="the text has a transform"):
        evaluate_sae(*setting()[:2], shouting, setting()[2])
    with pytest.raises(ValueError, match="the dataset of activations has a transform"):
        DatasetActivations(shouting, "a")
    blocks_of(data.with_format("numpy"))


def test_columns_that_a_format_hides_are_taken_where_they_are_named():
    data = Dataset.from_dict({"text": ["w1"], "clean": ["w2"], "attention_mask": [[1, 0]], "input_ids": [[3, 4]]})
    shown = data.with_format(columns=["clean"])
    assert list(shown[0]) == ["clean"] and find_document_column(shown).column == "clean"
    assert find_document_column(shown, "text").column == "text"
    assert find_document_column(data.with_format(columns=["clean"], output_all_columns=True)).column == "input_ids"
    ids = data.with_format("torch", columns=["input_ids"])
    assert find_document_column(ids) == DocumentColumn("ids", "input_ids", mask="attention_mask")


def blocks_of(data):
    return TokenBlocks(data, pythia_like(), context_length=8, batch_size=1)


def trained_on(data):
    return load_texts(SAETrainingArguments(model_name_or_path="x/y"), data, None)
