"""What text an evaluation reads: as much as was asked for, in the SAE's own terms, and nobody else's place in it."""

import pytest
import torch
from datasets import Dataset

from hfsae.data import TokenBatch, TokenBlocks
from hfsae.evaluation.text_batches import count, read_batches, say_shortfall, split, take, tokens_digest
from tests.data.tiny import assert_equal, language_model, llama_like, pythia_like, text_dataset
from tests.evaluation.tiny import VOCABULARY, batches, make_sae, tokens_of


def read(data, tokenizer=None, *, max_tokens=10**6, batch_size=4, saes=None, **share) -> list[TokenBatch]:
    configs = {name: sae.config for name, sae in (saes or {"sae": make_sae(context_length=8)}).items()}
    model = language_model(vocab_size=VOCABULARY)
    return read_batches(data, tokenizer, model, configs, max_tokens=max_tokens, batch_size=batch_size, **share)


def blocks(**options) -> TokenBlocks:
    return TokenBlocks(text_dataset(50, 50), pythia_like(), context_length=8, batch_size=2, **options)


def test_batches_are_taken_whole_until_the_tokens_are_enough_then_by_sequence():
    made = batches(3)
    assert_equal(take(made, tokens_of(made)), made)
    for limit in range(1, tokens_of(made) + 5):
        taken = list(take(made, limit))
        rows = sum(len(batch.keep) for batch in taken)
        assert count(taken) <= limit or rows == 1
        keep = torch.cat([batch.keep for batch in made])
        assert rows == len(keep) or count(taken) + int(keep[rows].sum()) > limit, "one more would have been too many"


def test_a_split_loses_no_sequence():
    made = batches(3)
    for tokens in (1, 30, 40, 90):
        first, rest = split(made, tokens)
        assert torch.equal(
            torch.cat([batch.input_ids for batch in [*first, *rest]]), torch.cat([batch.input_ids for batch in made])
        )
        assert count(first) <= max(tokens, int(made[0].keep[0].sum()))


def test_token_blocks_are_left_where_they_were_found():
    stream = blocks()
    next(stream)
    untouched = blocks()
    next(untouched)
    first = read(stream, max_tokens=20)
    assert_equal(first, read(stream, max_tokens=20))
    assert_equal([next(stream)], [next(untouched)])


def test_texts_and_datasets_are_cut_as_the_config_says():
    dataset = text_dataset(50, 50)
    sae = make_sae(context_length=8, prepend_bos=True, exclude_positions=[0, 3])
    expected = TokenBlocks(
        dataset,
        llama_like(),
        context_length=8,
        batch_size=4,
        prepend_bos=True,
        exclude_positions=[0, 3],
        repeat=False,
    )
    made = list(expected)
    for data in (dataset, list(dataset["text"]), dataset.to_iterable_dataset()):
        assert_equal(read(data, llama_like(), saes={"sae": sae}), made)


def test_texts_are_shared_among_processes():
    dataset = Dataset.from_dict({"text": [f"w{i} " * 20 for i in range(6)]})
    seen = [
        {
            int(token)
            for batch in read(dataset, pythia_like(), rank=rank, world_size=2)
            for token in batch.input_ids.flatten()
        }
        for rank in (0, 1)
    ]
    assert {token - 1 for token in seen[0]} & set(range(6)) == {0, 2, 4}
    assert {token - 1 for token in seen[1]} & set(range(6)) == {1, 3, 5}


def test_saes_that_want_text_cut_differently_are_told_so():
    saes = {"a": make_sae(context_length=8), "b": make_sae(context_length=16)}
    with pytest.raises(ValueError, match="context_length is 8 for a and 16 for b"):
        read(text_dataset(50), pythia_like(), saes=saes)


def test_tokens_that_the_sae_leaves_out_may_not_count():
    with pytest.raises(ValueError, match="position 2, which the SAE sae leaves out"):
        read(batches(1), saes={"sae": make_sae(exclude_positions=[2])})


def test_places_of_images_in_rows_of_token_ids_do_not_count():
    model, sae = language_model(), make_sae(exclude_special_tokens=True, exclude_positions=[])
    model.config.image_token_id, model.config.vision_end_token_id = 8, 9
    rows = Dataset.from_dict({"input_ids": [[4, 8, 8, 9, 5, 6]]})
    (batch,) = read_batches(rows, pythia_like(), model, {"": sae.config}, max_tokens=10, batch_size=4)
    assert batch.keep.tolist() == [[True, False, False, False, True, True]]


def test_tokens_that_the_model_cannot_read_are_refused_before_it_runs():
    ids = torch.full((1, 4), 999)
    with pytest.raises(ValueError, match="token id 999, but the language model knows 48"):
        read([TokenBatch(ids, torch.ones_like(ids), ids.bool())], saes={"sae": make_sae(exclude_positions=[])})
    ids = torch.ones(1, 65, dtype=torch.long)
    with pytest.raises(ValueError, match="blocks of 65 tokens, but the language model's context is 64"):
        read([TokenBatch(ids, ids, ids.bool())], saes={"sae": make_sae(exclude_positions=[])})


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("one text", TypeError, "data is a str"),
        ({"train": []}, TypeError, "data is a dict"),
        (["text"], TypeError, "a tokenizer is needed"),
        ([torch.zeros(2, 3)], TypeError, "data gives Tensor objects"),
        ([], ValueError, "no token that counts"),
    ],
)
def test_what_is_no_text_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        read(data)


def unfit(**parts: torch.Tensor) -> TokenBatch:
    """Two sequences of six tokens, the second with two of padding, and a part that is otherwise."""
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    return TokenBatch(torch.arange(4, 16).view(2, 6), mask, (mask == 1) & (torch.arange(6) > 0))._replace(**parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (dict(zip(TokenBatch._fields, (part.flip(1) for part in unfit()), strict=True)), "padding before tokens"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1, 1]] * 2)}, "padding before tokens"),
        ({"keep": torch.ones(2, 6, dtype=torch.bool)}, "counts tokens .* that are padding"),
        ({"keep": torch.ones(2, 6, dtype=torch.int64)}, "keep in torch.int64: expected int64 and bool"),
        ({"input_ids": torch.ones(2, 6)}, "ids in torch.float32"),
        ({"attention_mask": torch.ones(2, 5)}, r"shapes \(2, 6\), \(2, 5\), \(2, 6\): expected one shape"),
        (dict(zip(TokenBatch._fields, (part[0] for part in unfit()), strict=True)), r"shapes \(6,\)"),
    ],
)
def test_a_batch_that_is_not_as_its_class_says_is_refused(parts, message):
    """On the left, padding moves the tokens to other positions: GPT-2's figures are then those of another text."""
    assert count(read([unfit()], saes={"sae": make_sae()})) == 8
    with pytest.raises(ValueError, match=message):
        read([unfit(**parts)], saes={"sae": make_sae()})


def test_no_tokens_to_measure_on_is_an_error():
    with pytest.raises(ValueError, match="max_tokens must be positive, got 0"):
        read(batches(), max_tokens=0)
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="every token is left out"):
        read([TokenBatch(ids, ids + 1, ids.bool())])


def test_a_text_that_ends_early_is_said_and_a_sequence_that_did_not_fit_is_not(caplog):
    made = batches(3)
    longest = max(batch.input_ids.shape[1] for batch in made)
    say_shortfall(made, tokens_of(made) + longest - 1, "evaluation")
    assert not caplog.messages
    say_shortfall(made, 5000, "evaluation")
    say_shortfall([], 10, "calibration")
    assert caplog.messages == [
        f"{tokens_of(made):,} of the 5,000 tokens for evaluation could be had: the text ends",
        "0 of the 10 tokens for calibration could be had: the text ends",
    ]


def test_the_digest_of_tokens_is_that_of_the_sequences_alone():
    text = blocks(repeat=False)
    digest = tokens_digest(take(text, 50))
    for batch_size in (1, 7):
        other = TokenBlocks(text_dataset(50, 50), pythia_like(), context_length=8, batch_size=batch_size, repeat=False)
        assert tokens_digest(take(other, 50)) == digest
    (first, *rest) = take(blocks(repeat=False), 50)
    wider = TokenBatch(*(torch.nn.functional.pad(part, (0, 3)) for part in first))
    assert tokens_digest([wider, *rest]) == digest
    other_ids, other_keep = first.input_ids.clone(), first.keep.clone()
    other_ids[0, 1] += 1
    other_keep[0, 2] = ~other_keep[0, 2]
    for changed in (first._replace(input_ids=other_ids), first._replace(keep=other_keep)):
        assert tokens_digest([changed, *rest]) != digest
