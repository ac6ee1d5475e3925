"""Writing a cache of activations: by one process, or by several into one set of shards.

A shard is written under another name and renamed. Its metadata say where the source stood after it. So a cache whose
writer was killed goes on from its last whole shard, and ends with the same bytes.

Several writers share out the shards that are missing. Each passes over the text of the others, tokenised but not read
by the language model. It keeps the digests of its own shards in a file of its own until all are done. So no two
processes ever write one file.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfsae.data.activation_sources import RowSource
from hfsae.data.cache import DESCRIPTION, HELD_OUT, SUMS_OF_ONE, CacheDescription
from hfsae.data.stream import ChunkRows
from hfsae.differences import differences
from hfsae.folders import make_folder
from hfsae.in_use import in_use
from hfsae.progress import token_bar
from hfsae.storage import (
    SUMS,
    NoRoomError,
    appearing_whole,
    check_sum,
    in_bytes,
    open_tensors,
    read_sums,
    tensors_as_bytes,
    write_sums,
)

# Large enough for a disk to read at its full speed, small enough to be in memory twice: filled, and as a file's bytes.
_SHARD_BYTES = 2**28
# The key of a shard's metadata that holds the source's place after it.
_NEXT = "next"


@dataclass(frozen=True)
class Writers:
    """The processes that write one cache together, of which this is one.

    Args:
        rank: This one's number.
        count: How many there are.
        wait: Waits until all have come here.
        of_first: Gives all of them what the first one passes.
    """

    rank: int = 0
    count: int = 1
    wait: Callable[[], object] = lambda: None
    of_first: Callable[[list[str]], list[str]] = list

    @property
    def is_first(self) -> bool:
        """Whether this one does what is done once."""
        return self.rank == 0

    @property
    def sums(self) -> str:
        """The name of the file of digests that this one writes."""
        return SUMS if self.count == 1 else f"{SUMS_OF_ONE}{self.rank}"


def write_cache(
    source: RowSource,
    folder: str | Path,
    *,
    rows: int,
    made_from: dict[str, Any],
    dtype: torch.dtype = torch.bfloat16,
    held_out: Callable[[], Mapping[str, Tensor]] | None = None,
    shard_rows: int | None = None,
    disable_tqdm: bool = False,
    writers: Writers | None = None,
) -> None:
    """Writes the first rows of a source, or goes on where an earlier call with the same arguments was ended.

    Several processes, on one machine or on several with one file system, may write one cache. Each calls this with an
    equal source from its beginning, and passes over the rows of the others. Whoever writes, the bytes are the same.

    Memory: two shards (half a gigabyte) beside what the source needs.

    Args:
        source: Where rows come from, at its beginning.
        folder: Where to; made if it is not there.
        rows: How many.
        made_from: What they are made from, in values that JSON can hold.
        dtype: What they are stored as.
        held_out: Makes rows of other text by hook point, stored beside as they are; called once.
        shard_rows: Rows in a shard; None for a quarter of a gigabyte.
        disable_tqdm: Show no progress bar.
        writers: The processes that write it together; None for this one alone. The first one holds the folder for all.

    Raises:
        FileExistsError: If the folder holds another cache; says in what they differ. Or if another process is writing
            one into it (`hfsae.in_use.FolderInUseError`).
        OSError: If the disk has too little space; before anything is computed. If it is full later, what
            is there stays.
        ValueError: If the source ends early.
    """
    folder = Path(folder)
    row_bytes = sum(source.widths.values()) * dtype.itemsize
    shard_rows = shard_rows or max(1, _SHARD_BYTES // row_bytes)
    name_of_dtype = str(dtype).removeprefix("torch.")
    # Through JSON and back, so that it equals what will be read.
    description = CacheDescription(
        rows, shard_rows, name_of_dtype, dict(source.widths), json.loads(json.dumps(made_from))
    )
    writers = writers or Writers()
    make_folder(folder)
    with in_use(folder) if writers.is_first else nullcontext():
        if writers.is_first:
            _join_sums(folder)
            _claim(folder, description)
            _check_disk(folder, description)
            if held_out is not None and not (folder / HELD_OUT).exists():
                tables = {name: table.cpu().contiguous() for name, table in held_out().items()}
                _write_file(folder, HELD_OUT, tensors_as_bytes(tables))
        wanted = writers.of_first(description.unfinished(folder) if writers.is_first else [])
        _write_shards(source, folder, description, wanted, writers, disable_tqdm)
        writers.wait()
        if writers.is_first:
            _join_sums(folder)
        writers.wait()


def _claim(folder: Path, description: CacheDescription) -> None:
    """Makes the folder this cache's, or sees that it is."""
    if (folder / DESCRIPTION).exists():
        before = CacheDescription.read(folder)
        differing = differences(asdict(before) | {"made_from": before.made_from_here(folder)}, asdict(description))
        if differing:
            raise FileExistsError(
                f"{folder} holds another cache: {'; '.join(differing)}. Choose another folder, make the same one, or "
                "remove it first."
            )
        return
    _write_file(folder, DESCRIPTION, json.dumps(asdict(description), indent=2).encode())


def _check_disk(folder: Path, description: CacheDescription) -> None:
    shards = description.shards()
    needed = sum(shards[name] for name in description.unfinished(folder)) * description.row_bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} has {in_bytes(free)} free, but {in_bytes(needed)} of activations are to be written: free "
            "some space, choose another folder, or write fewer rows."
        )


def _write_shards(
    source: RowSource, folder: Path, description: CacheDescription, wanted: list[str], writers: Writers, quiet: bool
) -> None:
    """Writes this writer's part of the shards that are wanted, which nobody else writes."""
    mine = wanted[len(wanted) * writers.rank // writers.count : len(wanted) * (writers.rank + 1) // writers.count]
    shards, missing = description.shards(), set(wanted)
    names, size = list(shards), description.shard_rows
    rows = description.rows if writers.count == 1 else sum(shards[name] for name in mine)
    done = rows - sum(shards[name] for name in mine)
    reader, at = ChunkRows(source), 0
    with token_bar("writing activations", rows, done=done, disable=quiet or writers.rank > 0) as bar:
        for name in mine:
            # The nearest place that is known: after a shard that is whole, or where the last one of ours ended.
            index = names.index(name)
            known = next((i for i in range(index, at // size, -1) if names[i - 1] not in missing), None)
            if known is not None:
                check_sum(folder, names[known - 1])
                with open_tensors(folder / names[known - 1]) as last_whole:
                    reader.load_state_dict(json.loads(last_whole.metadata()[_NEXT]))
                at = known * size
            reader.skip(index * size - at)
            tensors = _gather(reader, description, shards[name], bar)
            content = tensors_as_bytes(tensors, {_NEXT: json.dumps(reader.state_dict())})
            try:
                _write_file(folder, name, content, writers.sums)
            except NoRoomError as error:
                there = len(shards) - len(description.unfinished(folder))
                raise NoRoomError(
                    f"{error} {there} of {len(shards)} shards are there whole: the same command goes on after them."
                ) from error
            at = index * size + shards[name]


def _gather(reader: ChunkRows, description: CacheDescription, rows: int, bar: Any) -> dict[str, Tensor]:
    """The next rows of every hook point."""
    dtype = getattr(torch, description.dtype)
    shard = {name: torch.empty(rows, width, dtype=dtype) for name, width in description.widths.items()}
    filled = 0
    while filled < rows:
        piece = reader.take(rows - filled)
        if not piece:
            raise ValueError(f"the source of activations ended before its {description.rows:,} rows were written")
        end = filled + len(next(iter(piece.values())))
        for name, table in piece.items():
            shard[name][filled:end].copy_(table)
        bar.update(end - filled)
        filled = end
    return shard


def _write_file(folder: Path, name: str, content: bytes, sums: str = SUMS) -> None:
    """Writes a file of a cache, and its digest before: no file is ever there without one."""
    write_sums(folder, {**read_sums(folder, sums), name: hashlib.sha256(content).hexdigest()}, sums)
    with appearing_whole(folder / name) as beside:
        beside.write_bytes(content)


def _join_sums(folder: Path) -> None:
    """Puts the digests of several writers, of this call or of one that was ended, together with the others."""
    for path in sorted(folder.glob(f"{SUMS_OF_ONE}*")):
        write_sums(folder, {**read_sums(folder), **read_sums(folder, path.name)})
        path.unlink()


def remove_cache(folder: str | Path) -> None:
    """Removes the files of a cache, and nothing else that lies beside them."""
    # The description last: what is left of a cache half-removed is still known as one.
    if not Path(folder).is_dir():
        return
    with in_use(folder):
        for pattern in (".rows-*.part", "rows-*.safetensors", HELD_OUT, f"{SUMS_OF_ONE}*", SUMS, DESCRIPTION):
            for path in Path(folder).glob(pattern):
                path.unlink()
