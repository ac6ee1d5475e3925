"""Conversations with calls of tools are read as they were written, however the dataset stores them."""

import json

import datasets
import pytest
from datasets import Dataset, load_dataset

from hfsae import TopKSAEConfig
from hfsae.analysis.document_sequences import DocumentSequenceReader
from hfsae.data import TokenBlocks
from hfsae.data.chat_messages import message_of, tools_of, without_absent
from tests.data.tiny import chat_tokenizer, language_model

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.name }} {% for key in tool.parameters %}{{ key }} {% endfor %}{% endfor %}"
    "{% for message in messages %}{% for call in message.tool_calls or [] %}"
    "{% generation %}{{ call.name }}{% for key, value in call.arguments.items() %} {{ key }} {{ value }}{% endfor %}"
    "{% endgeneration %} {% endfor %}{{ message.content or '' }} {% endfor %}"
)


def row(question: str, tool: str, arguments: dict[str, str], answer: str) -> dict:
    """Each tool has parameters of its own; a message that calls one says nothing beside.

    Older releases of datasets bring keys into alphabetical order; these are in it.
    """
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "tool_calls": [{"name": tool, "arguments": arguments}]},
            {"role": "tool", "content": answer},
        ],
        "tools": [{"name": tool, "parameters": dict.fromkeys(arguments, "w39")}],
    }


ROWS = [row("w1", "w2", {"w3": "w4"}, "w5"), row("w6", "w7", {"w10": "w9", "w8": "w11"}, "w12")]
ALL = [["w2", "w3", "w1", "w2", "w3", "w4", "w5"], ["w7", "w10", "w8", "w6", "w7", "w10", "w9", "w8", "w11", "w12"]]
CALLS = [["w2", "w3", "w4"], ["w7", "w10", "w9", "w8", "w11"]]


def as_table(folder):
    return Dataset.from_list(ROWS)


def as_stream(folder):
    return Dataset.from_list(ROWS).to_iterable_dataset()


def as_parquet(folder):
    Dataset.from_list(ROWS).to_parquet(folder / "rows.parquet")
    return load_dataset("parquet", data_files=str(folder / "rows.parquet"), split="train", cache_dir=str(folder))


def as_json_lines(folder):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder))


def with_tools_as_json(folder):
    return Dataset.from_list([one | {"tools": json.dumps(one["tools"])} for one in ROWS])


def words(tokenizer, ids) -> list[str]:
    return tokenizer.decode(ids).split()


@pytest.mark.parametrize("stored", [as_table, as_stream, as_parquet, as_json_lines, with_tools_as_json])
def test_calls_have_their_own_arguments_and_the_tools_come_along(stored, tmp_path):
    tokenizer = chat_tokenizer(TEMPLATE)
    options = {"context_length": 20, "batch_size": 2, "chat": True, "mix_documents": False, "repeat": False}
    batch = next(TokenBlocks(stored(tmp_path), tokenizer, exclude_positions=(), **options))
    for ids, mask, keep, everything, calls in zip(
        batch.input_ids, batch.attention_mask, batch.keep, ALL, CALLS, strict=True
    ):
        assert words(tokenizer, ids[mask.bool()]) == everything
        assert words(tokenizer, ids[keep]) == calls


def test_collections_read_them_too():
    tokenizer = chat_tokenizer(TEMPLATE)
    recorded = {"data": {"chat": True, "assistant_only": True}}
    config = TopKSAEConfig(d_in=16, n_features=8, k=2, context_length=20, training=recorded)
    reader = DocumentSequenceReader(config, language_model(), tokenizer)
    (read,) = reader.batches(as_table(None))
    found = [words(tokenizer, ids[mask.bool()]) for ids, mask in zip(*read.tokens[:2], strict=True)]
    assert sorted(found) == sorted(ALL)


def test_without_tools_or_with_their_names_alone_nothing_is_said_of_tools():
    tokenizer = chat_tokenizer(TEMPLATE)
    options = {"context_length": 20, "batch_size": 2, "chat": True, "mix_documents": False, "repeat": False}
    plain = [{"messages": one["messages"]} for one in ROWS]
    for rows in (plain, [one | {"tools": None} for one in plain], [one | {"tools": ["w2"]} for one in plain]):
        batch = next(TokenBlocks(Dataset.from_list(rows), tokenizer, exclude_positions=(), **options))
        assert words(tokenizer, batch.input_ids[0][batch.attention_mask[0].bool()]) == ALL[0][2:]


def test_tools_that_are_no_list_of_schemas_are_refused():
    assert tools_of(None) is tools_of("") is tools_of([]) is tools_of("[]") is None
    for tools in ("look it up", '{"name": "w2"}', ["w2"]):
        with pytest.raises(ValueError, match="the tools of a conversation are .*expected a list of JSON schemas"):
            tools_of(tools)


def test_a_none_that_is_meant_stays():
    """A column of the type Json keeps what each row wrote; a tool may be called with null."""
    call = {"name": "w2", "arguments": {"w3": None}}
    assert tools_of(json.dumps([call])) == [call]
    if not hasattr(datasets, "Json"):
        pytest.skip("this release of datasets has no type Json")
    feature = {"name": datasets.Value("string"), "arguments": datasets.Json()}
    assert without_absent(call | {"id": None}, feature) == call
    message = {"role": "assistant", "content": "w1", "tool_calls": [call], "name": None}
    assert message_of(message, datasets.Json()) == {key: message[key] for key in ("role", "content", "tool_calls")}
