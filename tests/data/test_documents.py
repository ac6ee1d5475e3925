"""What each process reads of a stream; `findings/` has what `datasets` does by itself."""

import pytest
from datasets import IterableDataset, interleave_datasets
from datasets.distributed import split_dataset_by_node

from hfsae.data.documents import StreamedDocuments


def numbers(starts):
    for start in starts:
        yield from ({"n": start + i} for i in range(10))


def a_stream(shards: int = 4) -> IterableDataset:
    """Shards of ten documents, which hold their numbers."""
    return IterableDataset.from_generator(numbers, gen_kwargs={"starts": [10 * shard for shard in range(shards)]})


def in_hundreds(stream: IterableDataset) -> IterableDataset:
    return stream.map(lambda row: {"n": row["n"] + 100})


def all_of(reader: StreamedDocuments) -> list[int]:
    return [number for group in iter(reader.read, None) for number in group["n"]]


STEPS = {
    "skip": lambda stream: stream.skip(10),
    "take": lambda stream: stream.take(17),
    "both": lambda stream: stream.skip(3).take(21),
    "skip, then a filter": lambda stream: stream.skip(10).filter(lambda row: row["n"] % 3 > 0),
    "skip, then a map": lambda stream: stream.skip(10).map(lambda row: {"n": row["n"] + 100}),
    "two of other lengths": lambda stream: interleave_datasets(
        [stream, in_hundreds(stream.filter(lambda r: r["n"] > 3))]
    ),
    "two by chance": lambda stream: interleave_datasets(
        [stream, in_hundreds(stream)], probabilities=[0.7, 0.3], seed=0
    ),
    "two until both end": lambda stream: interleave_datasets(
        [stream, in_hundreds(stream.filter(lambda row: row["n"] < 9))], stopping_strategy="all_exhausted"
    ),
    "two, shuffled": lambda stream: interleave_datasets([stream, in_hundreds(stream)]).shuffle(seed=0, buffer_size=5),
    "one of two": lambda stream: interleave_datasets([stream.skip(10), in_hundreds(stream)]),
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_together_skip_take_and_mix_the_documents_that_one_process_does(steps, world_size):
    """datasets 4.0.0 and 5.2.0 share n out where shards divide evenly: held-out documents are trained on then. Of
    streams that are interleaved each process mixes its own shards, which end after other documents."""
    stream = STEPS[steps](a_stream())
    shares = [all_of(StreamedDocuments(stream, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(sum(shares, [])) == sorted(row["n"] for row in stream)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_goes_on_where_it_was_in_a_stream_with_skip(rank):
    stream = a_stream().skip(3)
    reader = StreamedDocuments(stream, rank=rank, world_size=2)
    start = reader.state_dict()
    group = reader.read()
    assert group is not None
    first = group["n"]
    assert first == list(range(3 + rank, 40, 2))[:16]
    state = reader.state_dict()
    rest = all_of(reader)
    resumed = StreamedDocuments(stream, rank=rank, world_size=2)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert all_of(resumed) == rest == list(range(3 + rank, 40, 2))[16:]
    resumed.load_state_dict(start)
    assert all_of(resumed) == first + rest


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_goes_on_where_it_was_in_streams_that_are_interleaved(rank):
    stream = STEPS["two by chance"](a_stream())
    reader = StreamedDocuments(stream, rank=rank, world_size=2)
    group = reader.read()
    assert group is not None
    state = reader.state_dict()
    resumed = StreamedDocuments(stream, rank=rank, world_size=2)
    resumed.load_state_dict(state)
    assert group["n"] + all_of(resumed) == [row["n"] for row in stream][rank::2]


def test_a_place_that_an_older_version_saved_in_a_stream_with_skip_is_refused():
    stream = split_dataset_by_node(a_stream().skip(3), rank=0, world_size=2)
    next(iter(stream))
    old = {"epoch": 0, "position": 1, "stream": stream.state_dict()}
    with pytest.raises(ValueError, match="saved by an older hfsae.*begin the run again"):
        StreamedDocuments(a_stream().skip(3), rank=0, world_size=2).load_state_dict(old)


def test_a_process_reads_whole_shards_where_nothing_is_counted():
    stream = a_stream().filter(lambda row: row["n"] % 2 == 0)
    shares = [all_of(StreamedDocuments(stream, rank=rank, world_size=4)) for rank in range(4)]
    assert shares == [list(range(start, start + 10, 2)) for start in (0, 10, 20, 30)]
