import logging
from itertools import islice

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from hfsae.data import DatasetActivations, IteratorActivations, NonFiniteActivationsError, TensorActivations


def numbered(rows, d=3):
    """Row i holds i everywhere."""
    return torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, d)


def numbers(chunks, name="activations"):
    return [int(row[0]) for chunk in chunks for row in chunk[name]]


@given(st.integers(1, 40), st.integers(1, 15), st.integers(1, 4))
def test_processes_read_every_row_once_in_order(rows, chunk_rows, world_size):
    shares = [
        numbers(
            TensorActivations(numbered(rows), chunk_rows=chunk_rows, rank=rank, world_size=world_size, repeat=False)
        )
        for rank in range(min(world_size, rows))
    ]
    assert sorted(sum(shares, [])) == list(range(rows))
    assert all(share == list(range(rank, rows, world_size)) for rank, share in enumerate(shares))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dataset_gives_what_its_tensors_give(rank):
    tensors = {"resid_post.1": torch.randn(11, 4), "mlp_out.0": torch.randn(11, 2)}
    dataset = Dataset.from_dict({"a": tensors["resid_post.1"].numpy(), "mlp_out.0": tensors["mlp_out.0"].numpy()})
    options = {"chunk_rows": 3, "rank": rank, "world_size": 2}
    expected = TensorActivations(tensors, **options)
    source = DatasetActivations(dataset, {"resid_post.1": "a", "mlp_out.0": "mlp_out.0"}, **options)
    assert source.widths == expected.widths == {"resid_post.1": 4, "mlp_out.0": 2}
    for ours, theirs in islice(zip(source, expected, strict=True), 7):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert DatasetActivations(dataset, "mlp_out.0").widths == {"mlp_out.0": 2}


class Chunks:
    """Can be iterated over again and again."""

    def __init__(self, chunks):
        self.chunks = chunks

    def __iter__(self):
        return iter(self.chunks)


def sources():
    table = numbered(10)
    return {
        "tensor": lambda: TensorActivations(table, chunk_rows=4),
        "dataset": lambda: DatasetActivations(Dataset.from_dict({"activations": table.numpy()}), "activations"),
        "iterator": lambda: IteratorActivations(Chunks(table.split(3))),
    }


@given(st.sampled_from(sorted(sources())), st.integers(0, 9), st.integers(0, 9))
def test_resumed_sources_are_equal_at_any_chunk(kind, stop, further):
    make = sources()[kind]
    source = make()
    list(islice(source, stop))
    state = source.state_dict()
    expected = numbers(islice(source, 8))
    resumed = make()
    list(islice(resumed, further))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert numbers(islice(resumed, 8)) == expected


def test_an_iterator_that_runs_once_ends_and_resumes_forward_only(caplog):
    def generate():
        yield from numbered(10).split(3)

    source = IteratorActivations(generate(), hook_point="resid_post.0")
    assert source.widths == {"resid_post.0": 3}
    next(source)
    next(source)
    state = source.state_dict()
    with pytest.raises(ValueError, match="iterated over again"):
        source.load_state_dict({"chunks": 1})
    assert numbers(source, "resid_post.0") == [6, 7, 8, 9]
    fresh = IteratorActivations(generate(), hook_point="resid_post.0")
    with caplog.at_level(logging.INFO, logger="hfsae"):
        fresh.load_state_dict(state)
    assert "dropping 2 chunks" in caplog.text
    assert numbers(fresh, "resid_post.0") == [6, 7, 8, 9]
    with pytest.raises(ValueError, match="end at chunk 4, expected 9"):
        fresh.load_state_dict({"chunks": 9})


def test_an_iterable_may_yield_several_hook_points():
    chunks = [{"a": torch.randn(4, 2), "b": torch.randn(4, 5)} for _ in range(2)]
    source = IteratorActivations(chunks)
    assert source.widths == {"a": 2, "b": 5}
    assert [chunk["b"] is given["b"] for chunk, given in zip(source, chunks * 2, strict=False)] == [True] * 4


def test_chunks_unlike_the_first_are_errors():
    source = IteratorActivations([numbered(2), numbered(2, d=4)])
    next(source)
    with pytest.raises(ValueError, match="chunk 2 has the widths"):
        next(source)


@pytest.mark.parametrize(
    ("activations", "message"),
    [
        (torch.zeros(2, 3, 4), "flatten"),
        (torch.zeros(2, 3, dtype=torch.int64), "floating-point"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(3, 3)}, "different numbers of rows"),
        ({}, "rows"),
        (torch.zeros(0, 3), "none for rank 0"),
    ],
)
def test_tensors_of_another_kind_are_errors_at_once(activations, message):
    with pytest.raises(ValueError, match=message):
        TensorActivations(activations)


def test_other_mistakes_are_errors_at_once():
    with pytest.raises(ValueError, match="chunk_rows is 0"):
        TensorActivations(numbered(3), chunk_rows=0)
    with pytest.raises(ValueError, match="rank is 2 of world_size=2"):
        TensorActivations(numbered(3), rank=2, world_size=2)
    with pytest.raises(ValueError, match="expected some of"):
        DatasetActivations(Dataset.from_dict({"a": [[1.0]]}), ["a", "b"])
    with pytest.raises(ValueError, match="empty"):
        IteratorActivations([])
    with pytest.raises(ValueError, match="saved with 4 rows"):
        TensorActivations(numbered(3)).load_state_dict(TensorActivations(numbered(4)).state_dict())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_name_the_hook_point(value):
    bad = torch.zeros(6, 3)
    bad[4, 1] = value
    for source in (
        TensorActivations({"good": numbered(6), "bad": bad}),
        IteratorActivations([{"good": numbered(6), "bad": bad}]),
    ):
        with pytest.raises(NonFiniteActivationsError, match="at bad, in 1 of 6 rows"):
            next(source)
