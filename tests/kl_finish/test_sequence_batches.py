"""Whole sequences in which exactly so many tokens count, in random order."""

import json

import pytest
import torch

from hfsae.data import TokenBlocks
from hfsae.kl_finish.sequence_batches import SequenceBatches
from tests.data.tiny import assert_equal, pythia_like, text_dataset

LENGTHS = (5, 9, 3, 12, 7, 20, 4)


def blocks(**options):
    told = {"context_length": 8, "batch_size": 3, "exclude_positions": [0], **options}
    return TokenBlocks(text_dataset(*LENGTHS), pythia_like(), **told)


def counting(batches):
    """The tokens that count, in their order."""
    return torch.cat([batch.input_ids[batch.keep] for batch in batches])


def first(batches, count):
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


@pytest.mark.parametrize("mix", [True, False], ids=["mixed", "padded"])
@pytest.mark.parametrize("tokens", [1, 6, 10, 50])
def test_every_token_of_the_text_counts_once_and_in_its_order(tokens, mix):
    found = first(SequenceBatches(blocks(mix_documents=mix), tokens), 12)
    assert all(int(batch.keep.sum()) == tokens for batch in found)
    assert torch.equal(counting(found), counting(first(blocks(mix_documents=mix), 300))[: 12 * tokens])


@pytest.mark.parametrize("mix", [True, False], ids=["mixed", "padded"])
def test_sequences_are_whole_and_none_is_read_for_nothing(mix):
    def sequences(batches):
        for batch in batches:
            yield from (tuple(ids[mask.bool()].tolist()) for ids, mask, _ in zip(*batch, strict=True))

    whole = set(sequences(first(blocks(mix_documents=mix), 50)))
    for batch in first(SequenceBatches(blocks(mix_documents=mix), 10, window_tokens=40), 10):
        assert batch.keep.any(1).all() and batch.attention_mask.any(0).all()
        assert not (batch.keep & ~batch.attention_mask.bool()).any()
        assert set(sequences([batch])) <= whole


def test_the_sequences_of_a_window_come_in_another_order_in_each_window_process_and_run():
    def order(**options):
        found = first(SequenceBatches(blocks(), 7, window_tokens=100, **options), 30)
        return counting(found)

    plain = counting(first(SequenceBatches(blocks(), 7), 30))
    orders = [order(), order(seed=1), order(rank=1)]
    for i, one in enumerate(orders):
        assert not torch.equal(one, plain) and not any(torch.equal(one, other) for other in orders[:i])
    sizes = torch.tensor([int(batch.keep.sum()) for batch in first(blocks(), 20)]).cumsum(0)
    window = int(sizes[sizes >= 100][0])  # whole batches of blocks, until there are as many tokens
    assert torch.equal(orders[0][:window].sort().values, plain[:window].sort().values)
    assert not torch.equal(orders[0][:window], orders[0][window:])
    assert torch.equal(order(), order())


@pytest.mark.parametrize("window_tokens", [0, 30])
@pytest.mark.parametrize("taken", [0, 1, 4, 7])
def test_it_goes_on_where_it_was_saved(taken, window_tokens):
    one = SequenceBatches(blocks(), 10, window_tokens=window_tokens)
    first(one, taken)
    again = SequenceBatches(blocks(), 10, window_tokens=window_tokens)
    again.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert_equal(first(one, 5), first(again, 5))
