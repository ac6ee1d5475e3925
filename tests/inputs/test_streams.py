from itertools import islice

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from hfsae.data import TensorActivations, TokenBlocks
from hfsae.inputs import streams
from hfsae.inputs.base_model import open_base_model
from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import arguments, sparse_rows, text


def base(model=None, tokenizer=None):
    model = model or language_model()
    return open_base_model(arguments("unused"), model, tokenizer or pythia_like(), torch.device("cpu"))


# -- the language model -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "device", "expected"),
    [
        ({}, "cpu", True),
        ({"activation_dtype": "float32"}, "cpu", False),
        ({"model_dtype": "float32"}, "cpu", False),
        ({}, "cpu without units", False),
        ({"bf16": True}, "cpu without units", True),
        ({}, "mps", False),
        ({}, "cuda", True),
        ({"activation_dtype": "float32"}, "cuda", False),
        ({"model_dtype": "float32"}, "cuda", False),
        ({"model_dtype": "float32", "bf16": True}, "cuda", True),
    ],
)
def test_products_of_the_model_run_in_bfloat16_where_there_are_units_for_it_and_no_more_was_asked_for(
    monkeypatch, options, device, expected
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(streams, "has_bfloat16_units", lambda: device == "cpu")
    place = torch.device(device.split()[0])  # none is needed to ask
    model = language_model()
    assert streams.runs_in_bfloat16(arguments("unused", **options), model, place) is expected
    model.is_quantized = True  # as transformers marks a model that it loads in fewer bits
    assert streams.runs_in_bfloat16(arguments("unused", **options), model, place) is bool(options.get("bf16"))


def test_places_of_images_in_rows_of_token_ids_are_no_text_whatever_the_tokenizer_says():
    model = language_model()
    model.config.image_token_id, model.config.vision_start_token_id = 8, 9
    rows = Dataset.from_dict({"input_ids": [[4, 9, 8, 8, 5, 6]] * 8})
    for special in (True, False):
        args = arguments("unused", exclude_special_tokens=special, exclude_positions=[], context_length=6)
        blocks = streams.training_blocks(args, rows, base(model))
        kept = [True, not special, not special, not special, True, True]
        assert next(blocks).keep.tolist() == [kept] * 4


def test_what_training_text_is_read_in_is_known_and_said_where_it_is_not_the_models_own(monkeypatch, caplog):
    for has_units, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(streams, "has_bfloat16_units", lambda has_units=has_units: has_units)
        args, opened = arguments("unused"), base()
        caplog.clear()
        with caplog.at_level("INFO", "hfsae"):
            blocks = streams.training_blocks(args, text(), opened, Accelerator(cpu=True))
            source = streams.model_source(args, opened, blocks, ["resid_post.1"])
        assert opened.read_in == source.precision == expected
        assert opened.model.dtype == torch.float32
        assert ("in bfloat16; what is measured of it is in float32" in caplog.text) is has_units
        source.close()


# -- text -------------------------------------------------------------------------------------------------------------
def test_blocks_are_cut_as_the_arguments_say():
    args = arguments("unused", context_length=9, lm_batch_sequences=3, exclude_positions=[0, 4], prepend_bos=True)
    blocks = streams.training_blocks(args, text(), base(), Accelerator(cpu=True))
    assert isinstance(blocks, TokenBlocks)
    batch = next(blocks)
    assert batch.input_ids.shape == (3, 9) and (batch.input_ids[:, 0] == 0).all()
    assert not batch.keep[:, [0, 4]].any() and batch.keep[:, [1, 2, 3]].any()


def test_a_stream_of_text_is_read_in_its_own_order_and_a_table_is_shuffled():
    def first(dataset, **options):
        args = arguments("unused", **options)
        return next(streams.training_blocks(args, dataset, base(), Accelerator(cpu=True))).input_ids

    in_order = first(text(), shuffle_documents=False)
    assert torch.equal(first(text().to_iterable_dataset(), shuffle_documents=False), in_order)
    assert not torch.equal(first(text()), in_order)


@pytest.mark.parametrize("streaming", [False, True])
def test_blocks_of_a_table_and_of_a_stream_are_mixed(streaming):
    def tokens(mixed: bool) -> list[list[int]]:
        table = Dataset.from_dict({"text": [" ".join(f"w{(7 * n + m) % 30}" for m in range(40)) for n in range(8)]})
        dataset = table.to_iterable_dataset() if streaming else table
        args = arguments(
            "unused", training_tokens=100, lm_batch_sequences=2, context_length=9, shuffle_documents=mixed
        )
        blocks = streams.training_blocks(args, dataset, base(), Accelerator(cpu=True))
        return [row for batch in islice(blocks, 18) for row in batch.input_ids.tolist()]

    assert tokens(True) != tokens(False)
    if streaming:  # whose documents come in their own order
        assert sorted(tokens(True)) == sorted(tokens(False))


# -- activations that were brought ------------------------------------------------------------------------------------
def as_dataset(rows, **columns):
    return Dataset.from_dict({"x": rows.tolist(), **columns})


@pytest.mark.parametrize("kind", ["tensor", "dict", "dataset"])
def test_the_last_rows_of_activations_are_held_out(kind):
    rows = sparse_rows(200)
    brought = {"tensor": rows, "dict": {"x": rows}, "dataset": as_dataset(rows)}[kind]
    left, held_out = streams.hold_out(brought, arguments("unused"))
    ((_, last),) = held_out.items()
    assert torch.allclose(last, rows[-4:])
    chunk = next(streams.own_source(left, Accelerator(cpu=True)))
    ((_, first),) = chunk.items()
    assert torch.allclose(first, rows[:-4]) and chunk.keys() == held_out.keys()


def test_activations_of_several_columns_are_named_after_them():
    rows = sparse_rows(100)
    brought = as_dataset(rows, y=(rows * 2).tolist())
    left, held_out = streams.hold_out(brought, arguments("unused"))
    assert torch.allclose(held_out["y"], 2 * held_out["x"])
    assert streams.own_source(left, Accelerator(cpu=True)).widths == {"x": 16, "y": 16}


def test_nothing_is_held_out_of_an_iterator_or_of_a_handful_of_rows():
    iterator = iter([sparse_rows(10)])
    assert streams.hold_out(iterator, arguments("unused")) == (iterator, {})
    assert streams.hold_out(sparse_rows(20), arguments("unused"))[1] == {}


# -- the stream -------------------------------------------------------------------------------------------------------
def stream(**options):
    source = TensorActivations(torch.arange(4000.0).view(-1, 1), chunk_rows=100)
    args = arguments("unused", activation_dtype="float32", **options)
    return streams.make_stream(args, source, Accelerator(cpu=True))


def test_windows_are_as_asked_by_default_a_tenth_of_the_run_and_never_less_than_a_batch():
    assert stream(steps=100).window_tokens == 320
    assert stream(steps=5).window_tokens == 32
    assert stream(shuffle_window_tokens=64).window_tokens == 64
    assert stream(shuffle_window_tokens=1).window_tokens == 32


def test_a_window_of_zero_leaves_the_order_alone():
    assert next(stream(shuffle_window_tokens=0))["activations"].flatten().tolist() == list(range(32))
    assert next(stream())["activations"].flatten().tolist() != list(range(32))


def test_what_was_looked_at_ahead_is_given_out_all_the_same():
    plain, lookahead = stream(), streams.PeekableStream(stream())
    ahead = lookahead.peek(3)
    batches = [next(plain)["activations"] for _ in range(5)]
    assert all(torch.equal(seen["activations"], batch) for seen, batch in zip(ahead, batches[:3], strict=True))
    assert all(torch.equal(next(lookahead)["activations"], batch) for batch in batches)


@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_a_lookahead_tells_where_the_next_batch_comes_from(taken):
    lookahead, resumed = streams.PeekableStream(stream()), streams.PeekableStream(stream())
    lookahead.peek(3)
    for _ in range(taken):
        next(lookahead)
    resumed.peek(2)
    resumed.load_state_dict(lookahead.state_dict())
    assert torch.equal(next(resumed)["activations"], next(lookahead)["activations"])


def test_a_lookahead_beyond_the_end_gives_what_there_is():
    source = TensorActivations(torch.arange(70.0).view(-1, 1), repeat=False)
    ending = streams.PeekableStream(streams.make_stream(arguments("unused"), source, Accelerator(cpu=True)))
    assert len(ending.peek(5)) == 2 and len(list(ending)) == 2


# -- the stream -------------------------------------------------------------------------------------------------------
def test_a_window_is_no_larger_than_the_run():
    args = arguments("unused", steps=3, gradient_accumulation_steps=2, shuffle_window_tokens=10_000)
    assert streams.window_tokens(args, 1) == 3 * 2 * 32
    assert streams.window_tokens(arguments("unused", steps=3, shuffle_window_tokens=64), 1) == 64


def test_the_stream_ends_with_the_run_and_has_read_no_further():
    args = arguments("unused", steps=5, shuffle_window_tokens=64)
    source = TensorActivations(sparse_rows(1000), chunk_rows=1)
    batches = list(streams.make_stream(args, source, Accelerator(cpu=True)))
    assert len(batches) == 5
    assert torch.equal(next(source)["activations"], sparse_rows(1000)[5 * 32 : 5 * 32 + 1])
