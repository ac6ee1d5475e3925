import json
from itertools import islice

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hfsae.data import DatasetTooSmallError, TokenBlocks, load_text, split_documents
from tests.data.tiny import (
    assert_equal,
    chat_tokenizer,
    documents,
    llama_like,
    make_tokenizer,
    pythia_like,
    text_dataset,
)

TOKENIZERS = {"pythia": pythia_like(), "llama": llama_like()}
PYTHIA, LLAMA = TOKENIZERS["pythia"], TOKENIZERS["llama"]

lengths_of_documents = st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(lambda lengths: sum(lengths) > 0)


def tokens_of(batches):
    """The tokens of all blocks, in order, without padding."""
    return [
        token
        for batch in batches
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
        for token in ids[mask.bool()].tolist()
    ]


def through_json(state):
    return json.loads(json.dumps(state))


@given(lengths_of_documents, st.integers(2, 11), st.integers(1, 4), st.booleans())
def test_every_token_is_given_once_in_order(lengths, context_length, batch_size, streaming):
    dataset = text_dataset(*lengths)
    blocks = TokenBlocks(
        dataset.to_iterable_dataset() if streaming else dataset,
        PYTHIA,
        context_length=context_length,
        batch_size=batch_size,
        repeat=False,
    )
    expected = [
        token for text in documents(*lengths) if text for token in [*PYTHIA(text)["input_ids"], PYTHIA.eos_token_id]
    ]
    assert tokens_of(blocks) == expected


def test_tokens_left_over_at_the_end_of_an_epoch_begin_the_next():
    blocks = TokenBlocks(text_dataset(5, 2), PYTHIA, context_length=4, batch_size=2)
    epoch = tokens_of(TokenBlocks(text_dataset(5, 2), PYTHIA, context_length=4, batch_size=2, repeat=False))
    assert len(epoch) == 9
    assert tokens_of(islice(blocks, 9)) == epoch * 8


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 30), min_size=18, max_size=40),
    st.integers(2, 11),
    st.integers(1, 3),
    st.integers(0, 12),
    st.fixed_dictionaries(
        {
            "mix_documents": st.booleans(),
            "prepend_bos": st.booleans(),
            "world_size": st.integers(1, 3),
            "repeat": st.booleans(),
            "mixed_tokens": st.sampled_from([0, 20, 100, 10_000]),
        }
    ),
    st.sampled_from(["table", "shuffled table", "stream", "filtered stream"]),
    st.integers(1, 3),
)
def test_resumed_blocks_are_equal_at_any_batch(lengths, context_length, batch_size, stop, options, kind, shards):
    dataset = text_dataset(*lengths)
    if "stream" in kind:
        dataset = dataset.to_iterable_dataset(num_shards=shards)
    if "filtered" in kind:
        dataset = dataset.filter(has_even_length)

    def make():
        sizes = {"context_length": context_length, "batch_size": batch_size, "rank": options["world_size"] - 1}
        return TokenBlocks(dataset, LLAMA, shuffle=kind == "shuffled table", seed=3, **sizes, **options)

    try:
        blocks = make()
    except DatasetTooSmallError:
        return
    list(islice(blocks, stop))
    state = through_json(blocks.state_dict())
    expected = list(islice(blocks, 6))
    resumed = make()
    resumed.load_state_dict(state)
    assert through_json(resumed.state_dict()) == state
    assert_equal(islice(resumed, 6), expected)
    # An object that has gone further goes back in the same way.
    blocks.load_state_dict(state)
    assert_equal(islice(blocks, 6), expected)


def has_even_length(row):
    return len(row["text"]) % 2 == 0


def test_a_stream_gives_what_the_table_gives(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in documents(*range(1, 60))))
    sizes = {"context_length": 16, "batch_size": 3}
    table = TokenBlocks(load_text(file), PYTHIA, **sizes)
    stream = TokenBlocks(load_text(file, streaming=True), PYTHIA, **sizes)
    batches = list(islice(table, 90))  # 1829 tokens an epoch: more than two epochs
    state = through_json(stream.state_dict())
    assert_equal(islice(stream, 90), batches)
    stream.load_state_dict(state)
    assert_equal(islice(stream, 90), batches)


def test_a_split_stream_gives_what_the_split_table_gives():
    dataset = text_dataset(*range(1, 60))
    part, shares = "evaluation", {"train": 0.5, "evaluation": 0.5}
    table = TokenBlocks(split_documents(dataset, part, shares=shares), PYTHIA, context_length=16, batch_size=3)
    stream = TokenBlocks(
        split_documents(dataset.to_iterable_dataset(), part, shares=shares), PYTHIA, context_length=16, batch_size=3
    )
    assert_equal(islice(stream, 60), islice(table, 60))


@pytest.mark.parametrize("kind", ["table", "shuffled table", "one shard", "a shard a process", "three shards"])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_processes_share_all_documents_and_none_twice(kind, world_size):
    texts = [f"w{i}" for i in range(37)]
    dataset = Dataset.from_dict({"text": texts})
    shards = {"one shard": 1, "a shard a process": world_size, "three shards": 3}
    if kind in shards:
        dataset = dataset.to_iterable_dataset(num_shards=shards[kind])
    words = []
    for rank in range(world_size):
        blocks = TokenBlocks(
            dataset,
            PYTHIA,
            context_length=2,
            batch_size=1,
            shuffle=kind == "shuffled table",
            rank=rank,
            world_size=world_size,
            repeat=False,
        )
        words += [token for token in tokens_of(blocks) if token != PYTHIA.eos_token_id]
    assert sorted(words) == sorted(PYTHIA.convert_tokens_to_ids(texts))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("shards", [1, 2, 3, 4])
def test_a_process_reads_the_same_share_of_a_stream_in_every_epoch(shards, rank):
    stream = Dataset.from_dict({"text": [f"w{i}" for i in range(24)]}).to_iterable_dataset(num_shards=shards)
    blocks = TokenBlocks(stream, PYTHIA, context_length=2, batch_size=12, rank=rank, world_size=2)
    epochs = [next(blocks).input_ids[:, 0].tolist() for _ in range(8)]
    assert epochs == [epochs[0]] * 8


def test_shuffled_epochs_differ_and_hold_the_same_documents():
    dataset = Dataset.from_dict({"text": [f"w{i}" for i in range(20)]})

    def epochs(seed):
        blocks = TokenBlocks(dataset, PYTHIA, context_length=2, batch_size=20, shuffle=True, seed=seed)
        return [next(blocks).input_ids[:, 0].tolist() for _ in range(3)]

    first, second, third = epochs(seed=0)
    assert sorted(first) == sorted(second) == sorted(third) == list(range(1, 21))
    assert len({tuple(first), tuple(second), tuple(third), tuple(range(1, 21))}) == 4
    assert epochs(seed=0) == [first, second, third]
    assert epochs(seed=1)[0] != first


def rows_of(batches):
    return [row for batch in batches for row in batch.input_ids.tolist()]


@pytest.mark.parametrize("streaming", [False, True])
def test_mixed_blocks_are_those_of_the_text_in_another_order(streaming):
    dataset = text_dataset(100, 3, 90, 41, 7)

    def blocks(**options):
        text = dataset.to_iterable_dataset() if streaming else dataset
        return rows_of(TokenBlocks(text, PYTHIA, context_length=4, batch_size=2, repeat=False, **options))

    plain, whole = blocks(), blocks(mixed_tokens=1_000, seed=1)
    assert whole != plain and sorted(whole) == sorted(plain)
    assert blocks(mixed_tokens=1_000, seed=1) == whole != blocks(mixed_tokens=1_000, seed=2)


def test_few_mixed_tokens_mix_few_documents():
    """Documents are read sixteen at a time, and each fills a block."""
    text, options = text_dataset(*[3] * 100), {"context_length": 4, "batch_size": 2, "repeat": False}
    plain = rows_of(TokenBlocks(text, PYTHIA, **options))
    few = rows_of(TokenBlocks(text, PYTHIA, mixed_tokens=40, **options))
    assert few[:16] != plain[:16] and sorted(few[:16]) == sorted(plain[:16])
    assert sorted(few) == sorted(plain)


def test_from_a_place_in_mixed_or_unmixed_text_the_rest_of_it_follows():
    def blocks(**options):
        return TokenBlocks(text_dataset(100, 90), PYTHIA, context_length=4, batch_size=2, **options)

    plain, mixed = blocks(), blocks(mixed_tokens=1_000)
    next(plain), next(mixed)
    before = {name: value for name, value in plain.state_dict().items() if name != "mixed_tokens"}
    for state, expected in ((before, plain), (mixed.state_dict(), mixed)):
        found = blocks(mixed_tokens=60)
        found.load_state_dict(through_json(state))
        assert_equal(islice(found, 40), islice(expected, 40))


def test_an_epoch_is_mixed_by_itself_and_each_in_its_own_way():
    blocks = TokenBlocks(text_dataset(39, 19), PYTHIA, context_length=4, batch_size=3, mixed_tokens=1_000)
    epochs = [rows_of(islice(blocks, 5)) for _ in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_special_tokens_and_the_first_position_are_not_kept_by_default():
    batch = next(TokenBlocks(text_dataset(3, 4), PYTHIA, context_length=8, batch_size=1))
    assert batch.input_ids.tolist() == [[1, 2, 3, 0, 4, 5, 6, 7]]
    assert batch.keep.tolist() == [[False, True, True, False, True, True, True, True]]


def test_any_positions_can_be_excluded_and_special_tokens_kept():
    options = {"exclude_special_tokens": False, "exclude_positions": [1, 7, 30]}
    blocks = TokenBlocks(text_dataset(3, 4), PYTHIA, context_length=8, batch_size=1, **options)
    assert next(blocks).keep.tolist() == [[True, False, True, True, True, True, True, False]]
    assert blocks.special_token_ids == []


def test_a_word_with_token_id_0_is_a_word():
    tokenizer = make_tokenizer(specials=())
    blocks = TokenBlocks(Dataset.from_dict({"text": ["w1 w0 w0", "w0 w2"]}), tokenizer, context_length=5, batch_size=1)
    batch = next(blocks)
    assert batch.input_ids.tolist() == [[1, 0, 0, 0, 2]]
    assert batch.keep.tolist() == [[False, True, True, True, True]]


def test_bos_with_token_id_0_is_prepended_and_separates_where_it_is_also_eos():
    blocks = TokenBlocks(text_dataset(3, 2), PYTHIA, context_length=4, batch_size=2, prepend_bos=True)
    # The second block would begin with the separator, which is BOS already.
    assert next(blocks).input_ids.tolist() == [[0, 1, 2, 3], [0, 4, 5, 0]]


def test_bos_is_prepended_by_default_where_the_tokenizer_does_so():
    llama = TokenBlocks(text_dataset(3, 4), LLAMA, context_length=4, batch_size=2)
    pythia = TokenBlocks(text_dataset(3, 4), PYTHIA, context_length=4, batch_size=2)
    without = TokenBlocks(text_dataset(3, 4), LLAMA, context_length=4, batch_size=2, prepend_bos=False)
    assert (llama.prepend_bos, pythia.prepend_bos, without.prepend_bos) == (True, False, False)
    assert next(llama).input_ids.tolist() == [[0, 2, 3, 4], [0, 1, 5, 6]]
    assert next(without).input_ids.tolist() == [[2, 3, 4, 1], [5, 6, 7, 8]]


def test_documents_that_are_not_mixed_have_a_block_each():
    options = {"context_length": 4, "batch_size": 3, "mix_documents": False}
    batch = next(TokenBlocks(text_dataset(2, 0, 9, 3), LLAMA, **options))
    assert batch.input_ids.tolist() == [[0, 2, 3, 1], [0, 4, 5, 6], [0, 13, 14, 15]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert batch.keep.tolist() == [[False, True, True, False], [False, True, True, True], [False, True, True, True]]


def test_blocks_that_are_all_short_make_a_narrow_batch():
    batch = next(TokenBlocks(text_dataset(2, 3), PYTHIA, context_length=50, batch_size=2, mix_documents=False))
    assert batch.input_ids.shape == (2, 3)


CONVERSATIONS = [
    [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4"}],
    [
        {"role": "user", "content": "w5"},
        {"role": "assistant", "content": "w6"},
        {"role": "user", "content": "w7"},
        {"role": "assistant", "content": "w8 w9"},
    ],
]


@pytest.mark.parametrize("mix_documents", [True, False])
def test_of_conversations_only_the_assistants_words_are_kept(mix_documents):
    tokenizer = chat_tokenizer()
    blocks = TokenBlocks(
        Dataset.from_dict({"messages": CONVERSATIONS}),
        tokenizer,
        context_length=30,
        batch_size=2,
        chat=True,
        mix_documents=mix_documents,
        repeat=False,
    )
    batch = next(blocks)
    assert tokenizer.decode(batch.input_ids[batch.keep]).split() == ["w3", "w4", "w6", "w8", "w9"]
    assert "w1 w2" in tokenizer.decode(batch.input_ids[0])


def test_whole_conversations_can_be_kept_with_any_template():
    tokenizer = chat_tokenizer("{% for message in messages %}{{ message['content'] }} {% endfor %}")
    dataset = Dataset.from_dict({"chats": CONVERSATIONS})
    options = {"context_length": 30, "batch_size": 1, "chat": True, "text_column": "chats", "repeat": False}
    batch = next(TokenBlocks(dataset, tokenizer, assistant_only=False, **options))
    assert tokenizer.decode(batch.input_ids[batch.keep]).split() == [f"w{i}" for i in range(2, 10)]
    with pytest.raises(ValueError, match="generation.*assistant_only=False"):
        TokenBlocks(dataset, tokenizer, **options)


def test_chat_without_a_template_says_so():
    dataset = Dataset.from_dict({"messages": CONVERSATIONS})
    with pytest.raises(ValueError, match="no.*template|template.*none"):
        TokenBlocks(dataset, chat_tokenizer(None), context_length=30, batch_size=1, chat=True)


def test_token_ids_are_packed_as_they_are():
    table = torch.arange(1, 13).reshape(3, 4)
    options = {"batch_size": 1, "exclude_special_tokens": False, "repeat": False}
    assert next(TokenBlocks(table, context_length=4, **options)).input_ids.tolist() == [[1, 2, 3, 4]]
    assert tokens_of(TokenBlocks(table, context_length=5, **options)) == list(range(1, 13))
    dataset = Dataset.from_dict({"input_ids": [[5, 6, 0], [7, 0, 0]], "attention_mask": [[1, 1, 1], [1, 0, 0]]})
    assert tokens_of(TokenBlocks(dataset, context_length=5, **options)) == [5, 6, 0, 7]
    assert tokens_of(TokenBlocks(dataset.with_format("torch"), context_length=5, **options)) == [5, 6, 0, 7]


def test_special_tokens_among_token_ids_are_not_kept():
    batch = next(TokenBlocks(torch.tensor([[1, 0, 2, 0, 3]]), PYTHIA, context_length=5, batch_size=1))
    assert batch.keep.tolist() == [[False, False, True, False, True]]


def test_the_state_stays_small_when_a_document_is_large():
    blocks = TokenBlocks(text_dataset(20_000), PYTHIA, context_length=16, batch_size=4)
    list(islice(blocks, 100))
    state = through_json(blocks.state_dict())
    assert len(json.dumps(state)) < 1000
    expected = list(islice(blocks, 3))
    blocks.load_state_dict(state)
    assert_equal(islice(blocks, 3), expected)


def test_what_happens_to_the_users_tokenizer_afterwards_does_not_matter():
    tokenizer = pythia_like()
    dataset = text_dataset(*[5] * 200)
    expected = tokens_of(islice(TokenBlocks(dataset, tokenizer, context_length=4, batch_size=2), 100))
    blocks = TokenBlocks(dataset, tokenizer, context_length=4, batch_size=2)
    tokenizer.add_tokens(["w1 w2"])
    assert tokens_of(islice(blocks, 100)) == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_less_than_a_batch_is_an_error_at_once(streaming):
    dataset = text_dataset(3, 4)
    dataset = dataset.to_iterable_dataset() if streaming else dataset
    with pytest.raises(DatasetTooSmallError, match="2 documents .* 1 of the 2 blocks of 8 tokens"):
        TokenBlocks(dataset, PYTHIA, context_length=8, batch_size=2)
    assert len(list(TokenBlocks(dataset, PYTHIA, context_length=8, batch_size=2, repeat=False))) == 1


@pytest.mark.parametrize("repeat", [False, True])
def test_a_dataset_without_a_token_is_an_error_at_once(repeat):
    with pytest.raises(DatasetTooSmallError):
        TokenBlocks(text_dataset(0, 0), PYTHIA, context_length=8, batch_size=2, repeat=repeat)


def test_a_stream_that_cannot_be_read_again_is_an_error_at_its_end():
    rows = iter([{"text": "w1 w2 w3"}] * 5)
    blocks = TokenBlocks(IterableDataset.from_generator(lambda: rows), PYTHIA, context_length=4, batch_size=1)
    with pytest.raises(DatasetTooSmallError, match="0 documents"):
        list(islice(blocks, 20))


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_process_without_a_document_is_told_so_however_long_the_text_is(repeat: bool, streaming: bool):
    """Its text may be long enough: more of it would not help."""
    dataset = Dataset.from_dict({"text": [" ".join(f"w{i % 9}" for i in range(500))]})
    options = {"context_length": 8, "batch_size": 2, "repeat": repeat, "world_size": 2}
    data = dataset.to_iterable_dataset() if streaming else dataset
    assert next(TokenBlocks(data, llama_like(), rank=0, **options)).input_ids.shape == (2, 8)
    with pytest.raises(DatasetTooSmallError, match="no document for each of 2 processes, .* or use fewer processes"):
        TokenBlocks(data, llama_like(), rank=1, **options)


def test_a_state_of_other_options_is_refused():
    state = TokenBlocks(text_dataset(30), PYTHIA, context_length=8, batch_size=2).state_dict()
    blocks = TokenBlocks(text_dataset(30), PYTHIA, context_length=4, batch_size=2)
    with pytest.raises(ValueError, match="context_length was 8, is 4"):
        blocks.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 1}, "context_length 1"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of world_size=2"),
        ({"exclude_positions": range(8)}, "not all"),
        ({"exclude_positions": [-1]}, "positions from 0"),
        ({"prepend_bos": True, "tokenizer": make_tokenizer(eos_token="<eos>")}, "BOS"),
        ({"tokenizer": None}, "tokenizer is needed"),
        ({"text_column": "content"}, "'content' is not among them"),
        ({"dataset": torch.rand(3, 4)}, "token ids"),
        ({"dataset": text_dataset(30).to_iterable_dataset(), "shuffle": True}, "map-style"),
    ],
)
def test_options_that_cannot_work_are_errors_at_once(options, message):
    usable = {"dataset": text_dataset(30), "tokenizer": PYTHIA, "context_length": 8, "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        TokenBlocks(**usable | options)


@pytest.mark.parametrize("dataset", [["a text"], DatasetDict({"train": text_dataset(3)})])
def test_what_is_not_a_dataset_is_an_error(dataset):
    with pytest.raises(TypeError, match=type(dataset).__name__):
        TokenBlocks(dataset, PYTHIA, context_length=8, batch_size=2)


# -- text that people really have -------------------------------------------------------------------------------------
SHAREGPT = [[{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2 w3"}]]
SAID = [[{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]]


@pytest.mark.parametrize("column", ["conversations", "said"])
@pytest.mark.parametrize("assistant_only", [True, False])
def test_sharegpt_conversations_are_those_with_roles(column, assistant_only):
    def batch(column, rows):
        options = {"context_length": 12, "batch_size": 1, "repeat": False, "assistant_only": assistant_only}
        return next(TokenBlocks(Dataset.from_dict({column: rows}), chat_tokenizer(), chat=True, **options))

    ours, theirs = batch(column, SHAREGPT), batch("messages", SAID)
    assert_equal([ours], [theirs])
    assert ours.input_ids[ours.keep].tolist() == ([6, 7] if assistant_only else [5, 6, 7])


def test_messages_of_other_kinds_are_refused():
    for messages, said in (
        ([{"from": "martian", "value": "w1"}], "a message is from 'martian'"),
        ([{"role": "user", "content": "w1"}, {"text": "w2"}], "expected one with role and content"),
    ):
        rows = IterableDataset.from_generator(lambda messages=messages: iter([{"messages": messages}] * 20))
        with pytest.raises(ValueError, match=said):
            TokenBlocks(rows, chat_tokenizer(), context_length=5, batch_size=1, chat=True)


def test_a_conversation_that_the_template_refuses_is_an_error_of_ours():
    tokenizer = chat_tokenizer("{{ raise_exception('roles must alternate') }}")
    dataset = Dataset.from_dict({"messages": SAID})
    with pytest.raises(ValueError, match="the chat template refuses a conversation: roles must alternate"):
        TokenBlocks(dataset, tokenizer, context_length=5, batch_size=1, chat=True, assistant_only=False)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["text", "tokens", "messages"])
def test_rows_without_a_document_are_skipped_counted_and_said(column, streaming, caplog):
    rows = {"text": "w1 w2", "tokens": [2, 3], "messages": SAID[0]}
    there = Dataset.from_dict({column: [rows[column]] * 4})
    holes = Dataset.from_dict({column: [rows[column], None, rows[column], None, None, rows[column], rows[column]]})
    holes = holes.to_iterable_dataset() if streaming else holes
    options = {"context_length": 6, "batch_size": 1, "repeat": False, "exclude_positions": ()}
    assert_equal(TokenBlocks(holes, chat_tokenizer(), **options), TokenBlocks(there, chat_tokenizer(), **options))
    assert f"a row has no document in the column '{column}' (None)" in caplog.messages[0]
    assert f"3 rows without a document in '{column}' were skipped" in caplog.messages


def test_a_document_of_another_kind_is_shown():
    stream = IterableDataset.from_generator(lambda: iter([{"text": "w1"}] * 3 + [{"text": 17.5}]))
    with pytest.raises(ValueError, match=r"the column 'text' holds 17.5 \(float\) where a text was expected"):
        list(TokenBlocks(stream, PYTHIA, context_length=2, batch_size=1, repeat=False))


@pytest.mark.parametrize("resumed", [False, True])
def test_text_that_is_read_again_is_said_with_how_often(caplog, resumed):
    def blocks():
        return TokenBlocks(text_dataset(*[40] * 10), PYTHIA, context_length=8, batch_size=5, wanted_tokens=1600)

    reading = blocks()
    for _ in range(3):
        next(reading)
    if resumed:
        state = reading.state_dict()
        reading = blocks()
        reading.load_state_dict(state)
    for _ in range(20):
        next(reading)
    # 400 tokens less the first position of 8; the EOS between documents are special.
    assert caplog.messages == ["the text holds about 350 tokens that count: it is read 4.6 times to train on 1,600"]


def test_text_that_is_long_enough_is_not_spoken_of(caplog):
    reading = TokenBlocks(text_dataset(*[40] * 10), PYTHIA, context_length=8, batch_size=5, wanted_tokens=100)
    for _ in range(5):
        next(reading)
    assert not caplog.messages
