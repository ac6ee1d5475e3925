"""What documents are is told by the type of their column, whatever its name."""

import pytest
from datasets import Dataset

from hfsae.data import DocumentColumn, find_document_column

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
