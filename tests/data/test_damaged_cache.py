"""Caches whose files changed, caches of other versions, and two that want one folder."""

import json
from pathlib import Path

import pytest
import torch

from hfsae.data import CachedActivations, IteratorActivations, write_cache
from hfsae.in_use import FolderInUseError, in_use
from hfsae.storage import DamagedFileError
from tests.data.test_cache import numbered, write


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Three shards, of 8, 8 and 4 rows."""
    write(tmp_path, held_out=lambda: {"a": numbered(4), "b": numbered(4, d=2)})
    return tmp_path


def read(folder: Path) -> list[dict[str, torch.Tensor]]:
    source = CachedActivations(folder, chunk_rows=4, repeat=False)
    source.held_out()
    return list(source)


def flip(path: Path, at: int = -2) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*(f"rows-0000{i}.safetensors" for i in range(3)), "held-out.safetensors"])
@pytest.mark.parametrize("at", [-2, 0, 30])
def test_a_flipped_bit_is_found_before_a_row_of_the_file_is_read(cache: Path, name: str, at: int):
    assert len(read(cache)) == 5
    flip(cache / name, at)
    with pytest.raises((DamagedFileError, ValueError), match=name):
        read(cache)


def test_shards_are_held_against_their_sums_once(cache: Path):
    source = CachedActivations(cache, chunk_rows=20)
    first = next(source)
    for _ in range(3):
        assert torch.equal(next(source)["a"], first["a"])
    assert len(source._checks) == 3


@pytest.mark.parametrize("short", [1, 100])
@pytest.mark.parametrize("index", [0, 2])
def test_a_shard_that_is_short_is_refused_before_anything_is_read(cache: Path, short: int, index: int):
    path = cache / f"rows-0000{index}.safetensors"
    path.write_bytes(path.read_bytes()[:-short])
    with pytest.raises(ValueError, match=f"missing or cut off, {path.name} first"):
        CachedActivations(cache)
    write(cache, held_out=lambda: {})
    assert len(read(cache)) == 5


def rewritten(folder: Path, **fields) -> None:
    said = {**json.loads((folder / "cache.json").read_text()), **fields}
    (folder / "cache.json").write_text(json.dumps({name: value for name, value in said.items() if value != "gone"}))
    (folder / "SHA256SUMS").unlink()


def test_a_changed_description_is_found(cache: Path):
    said = (cache / "cache.json").read_text()
    (cache / "cache.json").write_text(said.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DamagedFileError, match="cache.json is not what was written"):
        CachedActivations(cache)


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "32"},
        {"dtype": 32},
        {"dtype": "int8"},
        {"dtype": "nn"},
        {"widths": "many"},
        {"widths": {"a": "3"}},
        {"widths": {"a": -3}},
        {"rows": 10**15},
        {"rows": "20"},
        {"rows": 0},
        {"rows": True},
        {"shard_rows": 0},
        {"shard_rows": None},
        {"made_from": []},
        {"rows": "gone"},
    ],
    ids=str,
)
def test_odd_kinds_in_a_description_are_told(cache: Path, fields):
    rewritten(cache, **fields)
    with pytest.raises(DamagedFileError, match="cache.json d"):
        CachedActivations(cache)


def test_a_cache_of_a_newer_version_says_so(cache: Path):
    rewritten(cache, compression="zstd")
    with pytest.raises(ValueError, match="says compression, which this version of hfsae does not know"):
        CachedActivations(cache)


def test_a_cache_of_an_earlier_version_without_sums_is_read(cache: Path):
    (cache / "SHA256SUMS").unlink()
    assert len(read(cache)) == 5


def test_two_writers_cannot_have_one_cache(tmp_path: Path):
    told = []

    def rows():
        yield {"a": numbered(10)}
        with pytest.raises(FolderInUseError, match="in use by process") as caught:
            write(tmp_path, source=IteratorActivations([{"a": numbered(20)}]))
        told.append(caught.value)
        yield {"a": numbered(10)}

    write(tmp_path, source=IteratorActivations(rows()))
    assert len(told) == 1 and len(list(CachedActivations(tmp_path, repeat=False))) == 1
    with in_use(tmp_path):
        with pytest.raises(FolderInUseError):
            write_cache(IteratorActivations([{"a": numbered(20)}]), tmp_path, rows=20, made_from={}, disable_tqdm=True)
