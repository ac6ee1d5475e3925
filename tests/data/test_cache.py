import json
import shutil
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfsae.data import (
    CachedActivations,
    CacheDescription,
    IteratorActivations,
    LMActivations,
    NonFiniteActivationsError,
    TensorActivations,
    TokenBlocks,
    remove_cache,
    write_cache,
)
from tests.data.tiny import language_model, pythia_like, text_dataset

MADE_FROM = {"text": "numbers", "seed": 0}


def numbered(rows, d=3):
    """Row i holds i everywhere."""
    return torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, d).contiguous()


def write(folder, rows=20, source=None, *, made_from=MADE_FROM, dtype=torch.float32, shard_rows=8, **options):
    source = source or TensorActivations({"a": numbered(rows), "b": -numbered(rows, d=2)}, chunk_rows=3)
    options = {"rows": rows, "shard_rows": shard_rows, "disable_tqdm": True, **options}
    write_cache(source, folder, made_from=made_from, dtype=dtype, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def numbers(chunks):
    return [int(row[0]) for chunk in chunks for row in chunk["a"]]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_processes_read_back_every_row_once_in_order(tmp_path_factory, rows, shard_rows, chunk_rows, world_size):
    folder = tmp_path_factory.mktemp("cache")
    write(folder, rows, shard_rows=shard_rows)
    world_size = min(world_size, rows)
    shares = [
        list(CachedActivations(folder, chunk_rows=chunk_rows, rank=rank, world_size=world_size, repeat=False))
        for rank in range(world_size)
    ]
    assert sum(map(numbers, shares), []) == list(range(rows))
    assert max(map(len, map(numbers, shares))) - min(map(len, map(numbers, shares))) <= 1
    assert all(torch.equal(chunk["a"][:, :2], -chunk["b"]) for share in shares for chunk in share)


def test_a_cache_is_read_again_from_the_beginning_and_can_be_resumed_at_any_chunk(tmp_path):
    write(tmp_path)
    source = CachedActivations(tmp_path, ["a"], chunk_rows=6)
    assert numbers(islice(source, 5)) == [*range(20), *range(6)] and source.widths == {"a": 3}
    state = json.loads(json.dumps(source.state_dict()))
    resumed = CachedActivations(tmp_path, ["a"], chunk_rows=6)
    resumed.load_state_dict(state)
    assert numbers(islice(resumed, 3)) == numbers(islice(source, 3)) == list(range(6, 20))
    source.close()
    assert numbers([next(source)]) == list(range(6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_of_a_language_model_come_back_bit_by_bit(tmp_path, dtype):
    def source():
        blocks = TokenBlocks(text_dataset(*range(1, 30)), pythia_like(), context_length=8, batch_size=3)
        return LMActivations(language_model(), blocks, ["resid_post.0", "mlp_out.1"], dtype=dtype, prefetch=0)

    write(tmp_path, 100, source(), dtype=dtype, shard_rows=30)
    read = list(CachedActivations(tmp_path, repeat=False))
    made = list(islice(source(), 6))
    for name in ("resid_post.0", "mlp_out.1"):
        assert read[0][name].dtype == dtype
        expected = torch.cat([chunk[name] for chunk in made])[:100]
        assert len(expected) == 100 and torch.equal(torch.cat([chunk[name] for chunk in read]), expected)


def test_the_description_says_what_was_written(tmp_path):
    write(tmp_path, dtype=torch.bfloat16)
    assert CacheDescription.read(tmp_path) == CacheDescription(20, 8, "bfloat16", {"a": 3, "b": 2}, MADE_FROM)
    assert set(contents(tmp_path)) == {"SHA256SUMS", "cache.json", *(f"rows-0000{i}.safetensors" for i in range(3))}


def test_held_out_rows_lie_beside_and_are_made_once(tmp_path):
    made = []

    def held_out():
        made.append(1)
        return {"a": numbered(4), "b": numbered(4, d=2)}

    for _ in range(2):
        write(tmp_path, held_out=held_out)
    assert made == [1]
    assert torch.equal(CachedActivations(tmp_path, ["b"]).held_out()["b"], numbered(4, d=2))
    assert numbers(CachedActivations(tmp_path, repeat=False)) == list(range(20))


def test_without_held_out_rows_there_are_none(tmp_path):
    write(tmp_path)
    assert CachedActivations(tmp_path).held_out() == {}


# -- interrupted ------------------------------------------------------------------------------------------------------
class Killed(BaseException):
    """No code may catch it."""


class Dying:
    """A source that is killed at one of its chunks."""

    def __init__(self, source, chunk):
        self._source, self._left = source, chunk

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __next__(self):
        if not self._left:
            raise Killed
        self._left -= 1
        return next(self._source)


@pytest.mark.parametrize("chunk", range(7))
def test_a_cache_that_was_interrupted_goes_on_and_ends_with_the_same_bytes(tmp_path, chunk):
    def source():
        return TensorActivations({"a": numbered(20), "b": -numbered(20, d=2)}, chunk_rows=3)

    write(tmp_path / "whole")
    with pytest.raises(Killed):
        write(tmp_path / "broken", source=Dying(source(), chunk))
    with pytest.raises(ValueError, match=f"not whole: {3 - 3 * chunk // 8} of 3 shards"):
        CachedActivations(tmp_path / "broken")
    write(tmp_path / "broken", source=source())
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_shard_that_was_half_written_is_written_again(tmp_path):
    write(tmp_path / "whole")
    write(tmp_path / "broken")
    shard = tmp_path / "broken" / "rows-00001.safetensors"
    shard.rename(shard.with_name(f".{shard.name}.part"))
    (tmp_path / "broken" / "rows-00002.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="2 of 3 shards are missing or cut off, rows-00001.safetensors first"):
        CachedActivations(tmp_path / "broken")
    write(tmp_path / "broken")
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_cache_that_is_whole_is_left_alone(tmp_path):
    write(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write(tmp_path, source=Dying(TensorActivations({"a": numbered(20), "b": -numbered(20, d=2)}), chunk=0))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


# -- mistakes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"made_from": {**MADE_FROM, "seed": 1}}, "made_from.seed was 0 and is 1"),
        ({"made_from": {"text": "numbers"}}, "made_from.seed was 0 and is None"),
        ({"dtype": torch.bfloat16}, "dtype was 'float32' and is 'bfloat16'"),
        ({"rows": 21}, "rows was 20 and is 21"),
        ({"source": TensorActivations({"a": numbered(20)})}, "widths.b was 2 and is None"),
    ],
)
def test_a_folder_with_another_cache_is_refused_and_left_as_it_was(tmp_path, options, message):
    write(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=message):
        write(tmp_path, **options)
    assert contents(tmp_path) == before


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_computed(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20 * 5 * 4 - 1))
    with pytest.raises(OSError, match="has 399 bytes free, but 400 bytes of"):
        write(tmp_path, source=Dying(TensorActivations({"a": numbered(20), "b": -numbered(20, d=2)}), chunk=0))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20 * 5 * 4))
    write(tmp_path)


def test_a_source_that_ends_early_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="ended before its 20 rows"):
        write(tmp_path, source=IteratorActivations(iter([{"a": numbered(9), "b": numbered(9, d=2)}])))


def test_a_folder_without_a_cache_and_a_place_that_was_not_cached_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no activation cache in .*: there is no cache\.json"):
        CachedActivations(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match="holds a, b, not c"):
        CachedActivations(tmp_path, ["a", "c"])


def test_rows_that_are_not_numbers_are_found(tmp_path):
    rows = numbered(20)
    rows[13] = float("nan")
    write(tmp_path, source=IteratorActivations([{"a": numbered(20)}]))
    shard = tmp_path / "rows-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content.replace(numbered(20)[13].numpy().tobytes(), rows[13].numpy().tobytes()))
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(NonFiniteActivationsError, match="at a, in 1 of 20 rows"):
        next(CachedActivations(tmp_path))


def test_removing_a_cache_removes_nothing_else(tmp_path):
    write(tmp_path, held_out=lambda: {"a": numbered(4)})
    (tmp_path / "notes.txt").write_text("mine")
    remove_cache(tmp_path)
    assert set(contents(tmp_path)) == {"notes.txt"}
