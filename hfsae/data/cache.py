"""Activations on disk: made once, then read as often as wanted and by as many processes as wanted.

    FOLDER/
        SHA256SUMS                 of every other file
        cache.json                 number of rows, widths, dtype, and what the rows were made from
        held-out.safetensors       rows of other text, where there are any
        rows-00000.safetensors     for each hook point (shard_rows, d), in the order of the source
        rows-00001.safetensors     ...

`hfsae.data.cache_writing` writes it.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.data.activation_sources import check_finite
from hfsae.data.stored import StoredRows
from hfsae.folders import found_again
from hfsae.storage import (
    SUMS,
    DamagedFileError,
    check_sum,
    open_tensors,
    read_json,
    read_sums,
    read_tensors,
    size_of_header,
)

DESCRIPTION, HELD_OUT = "cache.json", "held-out.safetensors"
SUMS_OF_ONE = f".{SUMS}.of-"
"""How the digests are called of which one of several writers keeps its own, until they are put together."""

# A description that names more is damaged: it would be worked through shard by shard.
_MOST, _MOST_SHARDS = 2**48, 10**6
# How safetensors calls what activations are stored as.
_CALLED = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class CacheDescription:
    """What `cache.json` says.

    Args:
        rows: Rows at every hook point.
        shard_rows: Rows in a shard; the last one may have fewer.
        dtype: Of the rows, as torch calls it.
        widths: The size of the activations at each hook point.
        made_from: What the rows were made from, as whoever made them describes it. `folder`, where it is there, is the
            absolute path at which the cache was begun.
    """

    rows: int
    shard_rows: int
    dtype: str
    widths: dict[str, int]
    made_from: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> "CacheDescription":
        """Reads the description of a cache.

        Raises:
            FileNotFoundError: If the folder holds no cache.
            DamagedFileError: If the description is damaged, or is none.
            ValueError: If a newer version wrote it.
        """
        path = Path(folder) / DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(f"no activation cache in {folder}: there is no {DESCRIPTION}; make one first")
        said = read_json(path)
        check_sum(path.parent, path.name)
        return cls._of(said, path)

    @classmethod
    def _of(cls, said: dict[str, Any], path: Path) -> "CacheDescription":
        names = {field.name for field in fields(cls)}
        if more := sorted(said.keys() - names):
            raise ValueError(
                f"{path} says {', '.join(more)}, which this version of hfsae does not know. Upgrade hfsae."
            )
        if missing := sorted(names - said.keys()):
            raise DamagedFileError(f"{path} does not say {', '.join(missing)}: it describes no cache.")
        found = cls(**said)
        widths = found.widths.values() if isinstance(found.widths, dict) else [None]
        numbers = [found.rows, found.shard_rows, *widths]
        if (
            not all(type(number) is int and 0 < number < _MOST for number in numbers)
            or str(found.dtype) not in _CALLED
            or not isinstance(found.made_from, dict)
            or -(-found.rows // found.shard_rows) > _MOST_SHARDS
        ):
            raise DamagedFileError(
                f"{path} describes no cache: rows {found.rows!r}, shard_rows {found.shard_rows!r}, dtype "
                f"{str(found.dtype)[:40]!r}, widths {str(found.widths)[:80]}."
            )
        return found

    def made_from_here(self, folder: str | Path) -> dict[str, Any]:
        """`made_from` for a cache that lies in a folder now: paths lead to what was moved together with it."""
        begun = self.made_from.get("folder")
        here = {} if begun is None else {"folder": os.path.abspath(folder)}
        return found_again(self.made_from, begun, folder) | here

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of all hook points."""
        return sum(self.widths.values()) * getattr(torch, self.dtype).itemsize

    def shards(self) -> dict[str, int]:
        """The names of the shards and their rows, in order."""
        starts = range(0, self.rows, self.shard_rows)
        return {f"rows-{i:05}.safetensors": min(self.shard_rows, self.rows - start) for i, start in enumerate(starts)}

    def unfinished(self, folder: Path) -> list[str]:
        """The shards that are missing, or not of the size that their rows make."""

        def is_whole(name: str, rows: int) -> bool:
            path = folder / name
            return path.is_file() and path.stat().st_size == (size_of_header(path) or 0) + rows * self.row_bytes

        return [name for name, rows in self.shards().items() if not is_whole(name, rows)]


class CachedActivations(StoredRows):
    """The rows of a cache, memory-mapped: rank r reads the r-th of world_size equal parts, in order.

    Args:
        folder: The cache.
        hook_points: Which of its hook points to read; None for all.
        chunk_rows: Rows in a chunk.
        rank: This process.
        world_size: The number of processes.
        repeat: Begin again at the end.

    Attributes:
        description: What the cache says of itself.

    Raises:
        FileNotFoundError: If there is no cache in the folder.
        DamagedFileError: If its description is damaged; while iterating, if a shard is not what was written.
        ValueError: If it is not whole, lacks a hook point, or a newer version wrote it.
        NonFiniteActivationsError: While iterating, if a row holds NaN or infinity.

    Example:
        >>> source = CachedActivations("activations/gpt2", ["transformer.h.8.output"])
        >>> next(source)["transformer.h.8.output"].shape
        torch.Size([8192, 768])
    """

    def __init__(
        self,
        folder: str | Path,
        hook_points: Sequence[str] | None = None,
        *,
        chunk_rows: int = 8192,
        rank: int = 0,
        world_size: int = 1,
        repeat: bool = True,
    ) -> None:
        self._folder = Path(folder)
        self.description = CacheDescription.read(folder)
        there = self.description.widths
        self._hook_points = list(there) if hook_points is None else list(hook_points)
        if missing := [name for name in self._hook_points if name not in there]:
            raise ValueError(f"the cache {folder} holds {', '.join(there)}, not {', '.join(missing)}")
        if unfinished := self.description.unfinished(self._folder):
            raise ValueError(
                f"the cache {folder} is not whole: {len(unfinished)} of {len(self.description.shards())} shards are "
                f"missing or cut off, {unfinished[0]} first. The command that began it goes on with it"
            )
        if any(self._folder.glob(f"{SUMS_OF_ONE}*")):
            raise ValueError(
                f"the cache {folder} is not whole: its writers have not put their digests together. The command that "
                "began it does so"
            )
        self._shards = list(self.description.shards())
        self._open_shard: tuple[int, Any] | None = None
        self._sums = read_sums(self._folder)
        self._checks: dict[int, Future[None]] = {}
        self._checker = ThreadPoolExecutor(1, "cache-check")
        super().__init__(self.description.rows, chunk_rows, rank, world_size, repeat)

    @staticmethod
    def _share_of(rows: int, rank: int, world_size: int) -> range:
        # Rows that stand together on the disk: taken in turns, every process would read all of it.
        return range(rows * rank // world_size, rows * (rank + 1) // world_size)

    @property
    def widths(self) -> dict[str, int]:
        """The size of the activations at each hook point."""
        return {name: self.description.widths[name] for name in self._hook_points}

    def _read(self, rows: range) -> dict[str, Tensor]:
        size = self.description.shard_rows
        pieces: dict[str, list[Tensor]] = {name: [] for name in self._hook_points}
        for index in range(rows.start // size, (rows.stop - 1) // size + 1):
            start, stop = max(rows.start - index * size, 0), min(rows.stop - index * size, size)
            for name, read in pieces.items():
                read.append(self._shard(index).get_slice(name)[start:stop])
        return {name: read[0] if len(read) == 1 else torch.cat(read) for name, read in pieces.items()}

    def _shard(self, index: int) -> Any:
        if self._open_shard is None or self._open_shard[0] != index:
            self._check(index).result()
            self._open_shard = index, self._opened(index)
            # The next one while this one is read; at the end of the share there may be none.
            self._check((index + 1) % len(self._shards))
        return self._open_shard[1]

    def _opened(self, index: int) -> Any:
        """A shard, which holds what the description says."""
        path = self._folder / self._shards[index]
        shard, rows = open_tensors(path), self.description.shards()[path.name]
        there = {name: shard.get_slice(name) for name in shard.keys()}
        shapes = {name: (tuple(table.get_shape()), table.get_dtype()) for name, table in there.items()}
        dtype = _CALLED[self.description.dtype]
        if shapes != {name: ((rows, width), dtype) for name, width in self.description.widths.items()}:
            raise DamagedFileError(f"{path} holds {shapes}, which is not what {DESCRIPTION} says.")
        return shard

    def _check(self, index: int) -> "Future[None]":
        """Holds a shard against its digest, once."""
        if index not in self._checks:
            name = self._shards[index]
            self._checks[index] = self._checker.submit(check_sum, self._folder, name, self._sums)
        return self._checks[index]

    def held_out(self) -> dict[str, Tensor]:
        """The rows of other text at the hook points that are read; empty where none were stored."""
        path = self._folder / HELD_OUT
        if not path.is_file():
            return {}
        check_sum(self._folder, HELD_OUT, self._sums)
        tables = read_tensors(path)
        check_finite(tables)
        return {name: tables[name] for name in self._hook_points}

    def close(self) -> None:
        """Lets go of the shard that is open."""
        self._open_shard = None
        self._checker.shutdown(cancel_futures=True)
