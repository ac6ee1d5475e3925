"""Parts of a text share no document; of few documents each part gets some, of very few a share of each."""

from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hfsae.data import split_documents

_WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)


def texts_of(dataset):
    return [row["text"] for row in dataset]


SHARES = {"train": 0.5, "calibration": 0.2, "evaluation": 0.3}


def parts_of(dataset, **options):
    return {part: texts_of(split_documents(dataset, part, shares=SHARES, **options)) for part in SHARES}


@settings(max_examples=15)
@given(st.lists(_WORDS, min_size=40, max_size=60, unique=True))
def test_parts_share_no_document_and_lose_none(texts):
    texts += texts[:5]  # equal documents stay together
    parts = parts_of(Dataset.from_dict({"text": texts}).to_iterable_dataset())
    assert Counter(text for part in parts.values() for text in part) == Counter(texts)
    names = list(parts)
    assert all(set(parts[a]).isdisjoint(parts[b]) for a in names for b in names if a != b)


def test_parts_have_their_shares_and_are_those_of_the_stream():
    dataset = Dataset.from_dict({"text": [f"Text number {i}." for i in range(3000)]})
    parts = parts_of(dataset)
    assert all(abs(len(parts[part]) / 3000 - SHARES[part]) < 0.03 for part in SHARES)
    assert parts == parts_of(dataset.to_iterable_dataset())
    reordered = {part: SHARES[part] for part in reversed(SHARES)}
    assert texts_of(split_documents(dataset, "calibration", shares=reordered)) == parts["calibration"]


def test_by_default_nearly_all_is_trained_on():
    dataset = Dataset.from_dict({"text": [str(i) for i in range(2000)]})
    assert 0.94 < len(split_documents(dataset, "train")) / 2000 < 0.98


def test_conversations_and_token_ids_can_be_split():
    messages = [[{"role": "user", "content": str(i)}] for i in range(100)]
    dataset = Dataset.from_dict({"messages": messages, "input_ids": [[i] for i in range(100)]})
    for column in ("messages", "input_ids"):
        parts = [split_documents(dataset, part, shares=SHARES, text_column=column) for part in SHARES]
        assert sorted(ids[0] for part in parts for ids in part["input_ids"]) == list(range(100))


@pytest.mark.parametrize(
    ("part", "shares"),
    [
        ("test", None),
        ("train", {"evaluation": 0.1}),
        ("train", {"train": 0.9, "evaluation": 0.2}),
        ("train", {"train": -0.1}),
        ("train", {"train": 0.1, "development": 0.1}),
    ],
)
def test_impossible_shares_are_errors(part, shares):
    with pytest.raises(ValueError, match="expected"):
        split_documents(Dataset.from_dict({"text": ["a"]}), part, shares=shares)


def long_text(number: int, words: int = 5000) -> str:
    return " ".join(f"{number}-{word}" for word in range(words))


def default_parts(dataset, **options):
    return {part: list(split_documents(dataset, part, **options)) for part in ("train", "calibration", "evaluation")}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("count", [20, 21, 42, 60, 75])
def test_of_few_documents_every_part_has_at_least_one(count, streaming):
    texts = [f"Text number {i}." for i in range(count)]
    dataset = Dataset.from_dict({"text": texts})
    parts = default_parts(dataset.to_iterable_dataset() if streaming else dataset)
    found = [row["text"] for part in parts.values() for row in part]
    assert sorted(found) == sorted(texts)
    assert len(parts["calibration"]) >= 1 and 1 <= len(parts["evaluation"]) <= 4
    reordered = default_parts(Dataset.from_dict({"text": texts[::-1] + texts}))
    assert {part: {row["text"] for row in rows} for part, rows in reordered.items()} == {
        part: {row["text"] for row in rows} for part, rows in parts.items()
    }


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_very_few_long_documents_are_cut_at_the_shares_and_no_word_is_lost(count, streaming):
    texts = [long_text(i) for i in range(count)]
    dataset = Dataset.from_dict({"text": texts, "title": ["x"] * count})
    parts = default_parts(dataset.to_iterable_dataset() if streaming else dataset, text_column="text")
    assert all(len(rows) == count for rows in parts.values())
    joined = [" ".join(parts[part][i]["text"].strip() for part in parts) for i in range(count)]
    assert [text.split() for text in joined] == [text.split() for text in texts]
    whole = sum(map(len, texts))
    shares = [sum(len(row["text"]) for row in rows) / whole for rows in parts.values()]
    assert shares == pytest.approx([0.96, 0.02, 0.02], abs=0.001)


def test_long_rows_of_token_ids_are_cut_with_their_masks():
    rows = Dataset.from_dict({"tokens": [list(range(1000))], "attention_mask": [[1] * 990 + [0] * 10]})
    parts = default_parts(rows, text_column="tokens")
    assert [token for (row,) in parts.values() for token in row["tokens"]] == list(range(1000))
    assert parts["evaluation"][0]["attention_mask"] == [1] * 10 + [0] * 10


def test_what_cannot_be_split_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="too few and too short to keep a share of 0.02.*give more text"):
        split_documents(Dataset.from_dict({"text": ["a", "b", "c"]}), "calibration")
    for nothing in (["", "  ", ""], [None, None]):
        with pytest.raises(ValueError, match="no text at all cannot be split"):
            split_documents(Dataset.from_dict({"text": nothing}), "evaluation", text_column="text")
    said = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]]
    with pytest.raises(ValueError, match="2 conversations cannot be split"):
        split_documents(Dataset.from_dict({"messages": said}), "train", chat=True)
    with pytest.raises(ValueError, match="the share of 'evaluation' is 0"):
        split_documents(Dataset.from_dict({"text": ["a"]}), "evaluation", shares={"train": 1, "evaluation": 0})


def test_an_empty_stream_says_that_it_is_empty():
    stream = Dataset.from_dict({"text": ["a"]}).to_iterable_dataset().filter(lambda row: False).map(lambda row: row)
    with pytest.raises(ValueError, match="the dataset is empty"):
        split_documents(stream, "train")
