import json
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfsae.data import (
    ActivationStream,
    IteratorActivations,
    LMActivations,
    TensorActivations,
    TokenBlocks,
    default_window_tokens,
)
from tests.data.tiny import language_model, pythia_like, text_dataset


def numbered(rows):
    """Row i holds i at one hook point and -i at another; bfloat16 holds integers up to 256 exactly."""
    numbers = torch.arange(rows, dtype=torch.float32)[:, None]
    return {"a": numbers.repeat(1, 2), "b": -numbers.repeat(1, 3)}


def make_stream(rows, *, chunk_rows=7, repeat=True, **options):
    source = TensorActivations(numbered(rows), chunk_rows=chunk_rows, repeat=repeat)
    return ActivationStream(source, **{"batch_tokens": 4, "window_tokens": 12} | options)


def numbers(batches):
    return [int(row[0]) for batch in batches for row in batch["a"]]


shapes = st.fixed_dictionaries(
    {
        "chunk_rows": st.integers(1, 30),
        "batch_tokens": st.integers(1, 8),
        "window_tokens": st.integers(1, 50),
        "seed": st.integers(0, 3),
    }
)


@given(shapes, st.integers(1, 200), st.integers(1, 6))
def test_a_window_gives_out_exactly_the_next_rows_of_the_text(shape, rows, windows):
    stream = make_stream(rows, **shape)
    batches = stream.window_tokens // shape["batch_tokens"]
    for window in range(windows):
        given_out = numbers(islice(stream, batches))
        first = window * stream.window_tokens
        expected = [row % rows for row in range(first, first + stream.window_tokens)]
        assert sorted(given_out) == sorted(expected)


@given(shapes, st.integers(1, 200), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_a_resumed_stream_is_equal_at_any_batch(shape, rows, stop, further, shuffle):
    stream, resumed = (make_stream(rows, shuffle=shuffle, **shape) for _ in range(2))
    list(islice(stream, stop))
    state = json.loads(json.dumps(stream.state_dict()))
    list(islice(resumed, further))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    expected, batches = list(islice(stream, 12)), list(islice(resumed, 12))
    for batch, other in zip(batches, expected, strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in ("a", "b"))


@given(shapes, st.integers(1, 200))
def test_all_hook_points_are_shuffled_alike(shape, rows):
    for batch in islice(make_stream(rows, **shape), 12):
        assert torch.equal(batch["a"][:, :1], -batch["b"][:, :1])
        assert batch["a"].shape == (shape["batch_tokens"], 2)
        assert batch["b"].shape == (shape["batch_tokens"], 3)


@given(shapes, st.integers(1, 200))
def test_without_shuffling_rows_keep_their_order(shape, rows):
    given_out = numbers(islice(make_stream(rows, shuffle=False, **shape), 10))
    assert given_out == [row % rows for row in range(10 * shape["batch_tokens"])]


@given(shapes, st.integers(1, 30), st.integers(0, 12))
def test_no_row_is_read_that_the_run_has_no_batch_for(shape, batches, before):
    source = TensorActivations(numbered(60), chunk_rows=1)
    stream = ActivationStream(source, total_batches=batches, **{k: v for k, v in shape.items() if k != "chunk_rows"})
    given_out = numbers(stream)
    wanted = batches * shape["batch_tokens"]
    assert stream.window_tokens <= wanted
    assert sorted(given_out) == sorted(row % 60 for row in range(wanted))
    assert numbers([next(source)]) == [wanted % 60]  # where the source stands
    whole = make_stream(60, **shape)
    first = min(before, batches) // (whole.window_tokens // shape["batch_tokens"]) * whole.window_tokens
    assert given_out[:first] == numbers(islice(whole, first // shape["batch_tokens"]))  # as in a longer run


def test_order_depends_on_window_seed_and_rank_and_on_nothing_else():
    def order(window=0, **options):
        # Every window holds the same rows.
        stream = make_stream(96, window_tokens=96, **options)
        list(islice(stream, 24 * window))
        return tuple(numbers(islice(stream, 24)))

    orders = [order(), order(window=1), order(window=2), order(seed=1), order(rank=1), tuple(range(96))]
    assert len(set(orders)) == len(orders)
    assert order(chunk_rows=50) == order()


def test_a_batch_mixes_rows_from_the_whole_window():
    batch = numbers([next(make_stream(200, window_tokens=200, batch_tokens=20))])
    assert min(batch) < 50 and max(batch) >= 150


def test_batches_stay_as_they_are_when_the_window_is_filled_again():
    stream = make_stream(200)
    batch = next(stream)["a"]
    before = batch.clone()
    list(islice(stream, 30))
    assert torch.equal(batch, before)


def test_a_source_that_ends_gives_out_whole_batches_and_ends():
    stream = make_stream(30, repeat=False, batch_tokens=4, window_tokens=12)
    assert len(given_out := numbers(stream)) == 28
    assert sorted(given_out[:24]) == list(range(24))
    assert set(given_out[24:]) <= set(range(24, 30))
    assert list(stream) == []


def test_a_source_with_less_than_a_batch_gives_nothing():
    assert list(make_stream(3, repeat=False)) == []


def test_windows_hold_whole_batches_and_at_least_one():
    assert make_stream(5, batch_tokens=4, window_tokens=15).window_tokens == 12
    assert make_stream(5, batch_tokens=4, window_tokens=1).window_tokens == 4


def test_default_windows_are_a_tenth_of_the_run_up_to_a_limit():
    assert default_window_tokens(10_000, batch_tokens=128) == 896
    assert default_window_tokens(100, batch_tokens=128) == 128
    assert default_window_tokens(10**9, batch_tokens=4096) == 2**18


def test_the_window_is_kept_in_one_precision_and_given_out_in_another():
    values = torch.tensor([[1.0 + 2**-12, 0.5]]).repeat(8, 1)
    options = {"batch_tokens": 4, "window_tokens": 8}
    batch = next(ActivationStream(TensorActivations(values), **options))["activations"]
    assert batch.dtype == torch.float32 and batch[0].tolist() == [1.0, 0.5]
    batch = next(ActivationStream(TensorActivations(values), dtype=torch.float32, **options))["activations"]
    assert torch.equal(batch, values[:4])
    batch = next(ActivationStream(TensorActivations(values), batch_dtype=torch.bfloat16, **options))["activations"]
    assert batch.dtype == torch.bfloat16


def test_a_window_that_cannot_fit_is_an_error_with_numbers_at_once():
    message = r"1,125,899,906,842,624 rows × 2 \+ 3 dimensions .* 11,258,999\.1 GB.*at most window_tokens="
    with pytest.raises(MemoryError, match=message):
        make_stream(10, batch_tokens=1, window_tokens=2**50)


def test_sizes_and_seeds_out_of_range_are_errors_at_once():
    with pytest.raises(ValueError, match="batch_tokens 0"):
        make_stream(10, batch_tokens=0)
    with pytest.raises(ValueError, match="seed -1"):
        make_stream(10, seed=-1)


def test_chunks_without_rows_are_passed_over_but_not_for_ever():
    rows, nothing = torch.ones(4, 2), torch.ones(0, 2)
    options = {"batch_tokens": 4, "window_tokens": 4}
    stream = ActivationStream(IteratorActivations([nothing, rows, nothing]), **options)
    assert [len(batch["activations"]) for batch in islice(stream, 3)] == [4, 4, 4]
    with pytest.raises(ValueError, match="without a row"):
        next(ActivationStream(IteratorActivations([nothing]), **options))


@settings(max_examples=10)
@given(st.integers(0, 30), st.booleans())
def test_from_text_to_shuffled_activations_resumes_bit_equal(stop, mix_documents):
    def make():
        blocks = TokenBlocks(
            text_dataset(*range(1, 30)),
            pythia_like(),
            context_length=8,
            batch_size=3,
            mix_documents=mix_documents,
            shuffle=True,
        )
        source = LMActivations(language_model(), blocks, ["resid_post.0", "resid_post.1"])
        return ActivationStream(source, batch_tokens=5, window_tokens=40, seed=1)

    stream, resumed = make(), make()
    list(islice(stream, stop))
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    for batch, other in zip(islice(resumed, 10), islice(stream, 10), strict=True):
        assert all(torch.equal(batch[name], other[name]) for name in batch)
        assert batch["resid_post.0"].shape == (5, 16)
    stream.close()
    resumed.close()
