"""A cache written by several, against the one written by one: threads here, processes in `tests/training`."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfsae.data import CachedActivations, LMActivations, TensorActivations, TokenBlocks, Writers, write_cache
from hfsae.data.stream import ChunkRows
from hfsae.in_use import FolderInUseError, in_use
from hfsae.storage import NoRoomError
from tests.data.tiny import language_model, pythia_like, text_dataset
from tests.full_disk import room_for


class Counting(TensorActivations):
    """Numbered rows, whose chunks can be passed over; counts those that are made."""

    def __init__(self, rows, chunk_rows):
        numbers = torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, 3).contiguous()
        super().__init__({"a": numbers}, chunk_rows=chunk_rows)
        self.made = 0

    def _read(self, rows):
        self.made += len(rows)
        return super()._read(rows)

    def skip(self):
        if self._position == len(self._share):
            self._position = 0
        passed = min(self._chunk_rows, len(self._share) - self._position)
        self._position += passed
        return passed


class Dies(Exception):
    """In place of a process's end."""


def together(folder, rows, shard_rows, chunk_rows, count, dies_after=None):
    """Writes by so many threads; gives their sources. After so many shards of its own each of them dies."""
    barrier, of_first = threading.Barrier(count), {}

    def from_first(rank, names):
        if rank == 0:
            of_first["names"] = names
        barrier.wait(10)
        return of_first["names"]

    def write(rank):
        source = Counting(rows, chunk_rows)
        source.made = 0
        if dies_after is not None:
            kept = source.state_dict

            def state_dict():
                if source.made > dies_after * shard_rows:
                    barrier.abort()
                    raise Dies
                return kept()

            source.state_dict = state_dict
        options = {
            "rows": rows,
            "shard_rows": shard_rows,
            "made_from": {},
            "dtype": torch.float32,
            "disable_tqdm": True,
        }
        writers = Writers(rank, count, lambda: barrier.wait(10), lambda names: from_first(rank, names))
        try:
            write_cache(source, folder, writers=writers, **options)
        except (Dies, threading.BrokenBarrierError):
            assert dies_after is not None
        return source

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(write, range(count)))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 12), st.integers(2, 5))
def test_several_write_the_bytes_of_one_and_make_hardly_more_rows(
    tmp_path_factory, rows, shard_rows, chunk_rows, count
):
    one, several = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("several")
    together(one, rows, shard_rows, chunk_rows, 1)
    sources = together(several, rows, shard_rows, chunk_rows, count)
    assert contents(several) == contents(one)
    # A chunk in which the shards of two meet is made by both; the tables' widths are read off one more row each.
    assert sum(source.made for source in sources) <= rows + 2 * count * chunk_rows + 3 * count


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.integers(20, 80), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3)
)
def test_others_go_on_where_some_were_killed(tmp_path_factory, rows, shard_rows, chunk_rows, before, after, shards):
    one, several = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("several")
    together(one, rows, shard_rows, chunk_rows, 1)
    together(several, rows, shard_rows, chunk_rows, before, dies_after=shards)
    together(several, rows, shard_rows, chunk_rows, after)
    assert contents(several) == contents(one)


def test_what_its_writers_have_not_put_together_is_not_whole(tmp_path):
    together(tmp_path, 20, 4, 3, 2)
    sums = (tmp_path / "SHA256SUMS").read_text().splitlines(keepends=True)
    (tmp_path / "SHA256SUMS").write_text("".join(sums[:2]))
    (tmp_path / ".SHA256SUMS.of-1").write_text("".join(sums[2:]))
    with pytest.raises(ValueError, match="have not put their digests together"):
        CachedActivations(tmp_path)
    together(tmp_path, 20, 4, 3, 1)
    assert CachedActivations(tmp_path).description.rows == 20
    assert (tmp_path / "SHA256SUMS").read_text() == "".join(sums)


def test_a_folder_that_another_holds_is_refused(tmp_path):
    with in_use(tmp_path), pytest.raises(FolderInUseError):
        together(tmp_path, 20, 4, 3, 1)


def test_a_full_disk_is_told_with_what_is_there_and_the_same_call_goes_on(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    together(whole, 20, 4, 3, 1)
    together(cut, 20, 4, 3, 1, dies_after=2)
    assert len(list(cut.glob("rows-*.safetensors"))) == 2
    told = r"cut/\S+ could not be written: File too large\. Make room .* 2 of 5 shards are there whole"
    with pytest.raises(NoRoomError, match=told), room_for(100):
        together(cut, 20, 4, 3, 1)
    together(cut, 20, 4, 3, 1)
    assert contents(cut) == contents(whole)


# -- passing over -----------------------------------------------------------------------------------------------------
def source_of_a_model():
    blocks = TokenBlocks(
        text_dataset(*range(1, 30)), pythia_like(), context_length=8, batch_size=3, exclude_positions=[0]
    )
    return LMActivations(language_model(), blocks, ["resid_post.0"], dtype=torch.float32)


@pytest.mark.parametrize("first, second", [(0, 5), (7, 10), (24, 24), (24, 100), (100, 1)])
def test_passing_over_rows_ends_where_taking_them_does(first, second):
    taken, skipped = ChunkRows(source_of_a_model()), ChunkRows(source_of_a_model())
    for rows in (first, second):
        skipped.skip(rows)
        while rows:
            rows -= len(next(iter(taken.take(rows).values())))
        assert skipped.state_dict() == taken.state_dict()
    assert all(torch.equal(skipped.take(50)[name], rows) for name, rows in taken.take(50).items())


def test_passing_over_more_than_there_is_says_so():
    with pytest.raises(ValueError, match="ended before"):
        ChunkRows(TensorActivations(torch.zeros(9, 2), repeat=False)).skip(10)
