"""Files that are what they were: one reader and writer of safetensors, digests beside them, JSON that is whole.

`SHA256SUMS` lies in a folder beside the files it vouches for, in the format of `sha256sum`, which checks it too.
"""

import codecs
import errno
import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

SUMS = "SHA256SUMS"
# Weights in one file, or in shards, as transformers calls them.
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
# A header that says it is longer is none: the limit of the format itself.
_LONGEST_HEADER = 100_000_000
# Deeper JSON is nobody's config; Python's own parser ends in a RecursionError a little later.
_DEEPEST_JSON = 100


class DamagedFileError(OSError):
    """A file is not what was written: cut off, changed, or something else in its place. Names it and what helps."""


# -- safetensors ------------------------------------------------------------------------------------------------------
def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFileError: If it is no whole safetensors file; says what it is instead, and what helps.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise damaged(Path(path), error) from error


def open_tensors(path: str | Path) -> Any:
    """A safetensors file whose tensors are read one by one, as `safetensors.safe_open`.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFileError: If it is no whole safetensors file.
    """
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise damaged(Path(path), error) from error


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file that whoever the umask lets may read: safetensors itself lets its owner alone."""
    path = Path(path)
    path.touch()
    mode = path.stat().st_mode
    with told_as_system_error(path):
        save_file(dict(tensors), path, metadata)
    path.chmod(mode)


@contextmanager
def told_as_system_error(path: str | os.PathLike) -> Iterator[None]:
    """Where safetensors writes: its own exception, of a disk that is full, becomes one as Python has it.

    Args:
        path: The file, or the folder of it.

    Raises:
        OSError: In place of it.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}. Make room there, or choose another folder.") from error


def tensors_as_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """What `write_tensors` would write."""
    return save(dict(tensors), metadata)


def size_of_header(path: Path) -> int | None:
    """Bytes before the tensors of a safetensors file; None where it does not begin like one."""
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8:
        return None
    (length,) = struct.unpack("<Q", start)
    return 8 + length if length <= _LONGEST_HEADER else None


def _is_text(start: bytes) -> bool:
    """Whether a file's first bytes are text; its last character may be cut off."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True


def damaged(path: Path, error: Exception | str) -> DamagedFileError:
    """The error that says what lies there in place of whole weights, and what helps."""
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if not start:
        found, cure = "is empty", "write or download it again"
    elif start.startswith(b"version https://git-lfs"):
        found = "is a pointer of git-lfs, not the weights"
        cure = "run `git lfs pull` in its folder, or download it with `hf download`"
    elif text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        found, cure = "is a web page, not weights", "download it again, with a token where one is asked for"
    elif text.startswith((b"{", b"[")) and _is_text(start):
        found, cure = "is JSON, not weights", "download it again"
    elif start.startswith((b"PK\x03\x04", b"\x80")) and path.suffix == ".safetensors":
        found, cure = "is a pickle under another name", "save it as safetensors"
    else:
        found, cure = f"is damaged or cut off ({error})", "write or download it again"
    return DamagedFileError(f"{path} {found}: {cure}.")


class NoRoomError(OSError):
    """A disk is full, or what a user may write on it: names the place, and what helps."""


@contextmanager
def naming_a_full_disk(place: str | os.PathLike) -> Iterator[None]:
    """Says where there is no room left, which the system's own error does not.

    Args:
        place: The file or folder that is written.

    Raises:
        NoRoomError: In place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        told = f"{place} could not be written: {os.strerror(error.errno)}."
        raise NoRoomError(f"{told} Make room there, or choose another folder.") from error


# -- files that appear whole ------------------------------------------------------------------------------------------
@contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which becomes `path` when its bytes are on the disk."""
    beside = path.with_name(f".{path.name}.part")
    try:
        with naming_a_full_disk(path):
            yield beside
            with beside.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


# -- digests ----------------------------------------------------------------------------------------------------------
def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(folder: Path, name: str = SUMS) -> dict[str, str]:
    """What `SHA256SUMS` of a folder, or another file of that kind, says, by file; empty where there is none.

    Raises:
        DamagedFileError: If it is not in the format of `sha256sum`.
    """
    path = folder / name
    if not path.is_file():
        return {}
    sums, content = {}, path.read_text(encoding="utf-8", errors="replace")
    if not content.endswith("\n"):
        raise DamagedFileError(f"{path} is cut off.")
    for line in content.splitlines():
        digest, separator, file = line.partition("  ")
        if not separator or len(digest) != 64:
            raise DamagedFileError(f"{path} is damaged: {line[:80]!r} is no line of sha256sum.")
        sums[file] = digest
    return sums


def write_sums(folder: Path, sums: Mapping[str, str], name: str = SUMS) -> None:
    """Writes `SHA256SUMS`, or another file of that kind, whole or not at all."""
    lines = [f"{digest}  {file}\n" for file, digest in sorted(sums.items())]
    with appearing_whole(folder / name) as beside:
        beside.write_text("".join(lines), encoding="utf-8")


def sum_up(folder: Path, names: Iterable[str]) -> None:
    """Writes `SHA256SUMS` for files of a folder, by their paths in it, from their bytes or from sums below."""
    names = list(names)
    below = [PurePosixPath(name).parent for name in names if PurePosixPath(name).name == SUMS]
    known = {str(inner / name): digest for inner in below for name, digest in read_sums(folder / inner).items()}
    write_sums(folder, {name: known.get(name) or sha256_of(folder / name) for name in names})


def check_sum(folder: Path, name: str, sums: Mapping[str, str] | None = None) -> None:
    """Holds one file against `SHA256SUMS`; one that is not in it passes.

    Args:
        folder: The folder.
        name: The file's path in it.
        sums: What `read_sums` gave; None reads them.

    Raises:
        FileNotFoundError: If it is not there.
        DamagedFileError: If its bytes are others than were written.
    """
    expected = (read_sums(folder) if sums is None else sums).get(name)
    path = folder / name
    if expected is None or sha256_of(path) == expected:
        return
    if path.suffix == ".safetensors":
        read_header(path)  # what is no longer such a file at all is better told so
    raise DamagedFileError(
        f"{path} is not what was written: its SHA-256 differs from the one in {SUMS}. Take it from a copy, or remove "
        f"{folder / SUMS} if the change was meant."
    )


def check_sums(folder: Path) -> None:
    """Holds every file of `SHA256SUMS` against it.

    Raises:
        DamagedFileError: If one is missing, or its bytes are others than were written.
    """
    sums = read_sums(folder)
    for name in sums:
        if not (folder / name).is_file():
            raise DamagedFileError(f"{folder / name} is missing, which {SUMS} names.")
        check_sum(folder, name, sums)


def seal(folder: str | os.PathLike) -> None:
    """Writes `SHA256SUMS` for the weights of a saved SAE, and lets whoever may read its config read them too."""
    folder = Path(folder)
    names = sorted(path.name for path in folder.glob("model*.safetensors"))
    for name in names:
        shutil.copymode(folder / "config.json", folder / name)
    sum_up(folder, names)


def remove_other_forms(folder: Path, written: set[str]) -> None:
    """Removes what is left of weights in one file or in shards where they were written over in another form.

    Args:
        folder: The folder.
        written: The names of the files that are meant.
    """
    if written.isdisjoint({_WHOLE, _INDEX}):
        return  # a variant, which stands beside
    for path in folder.iterdir():
        if path.name not in written and (path.name in (_WHOLE, _INDEX) or _SHARD.fullmatch(path.name)):
            path.unlink()


def read_header(path: Path) -> list[str]:
    """The names of the tensors in a safetensors file, from its header.

    Raises:
        DamagedFileError: If it is no whole safetensors file.
    """
    with open_tensors(path) as file:
        return list(file.keys())


def in_bytes(size: float) -> str:
    """A size as people read it.

    Example:
        >>> from hfsae.storage import in_bytes
        >>> in_bytes(1_500_000), in_bytes(12)
        ('1.50 MB', '12 bytes')
    """
    for unit, bytes_of in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_of:
            return f"{size / bytes_of:.2f} {unit}"
    return f"{int(size)} bytes"


# -- JSON -------------------------------------------------------------------------------------------------------------
def read_json(path: Path, kind: type = dict) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        kind: What it must hold.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFileError: If it is no JSON, is nested too deeply, or holds something of another kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged or cut off: it is no JSON ({error}).") from error
    if not isinstance(content, kind):
        raise DamagedFileError(f"{path} holds a {type(content).__name__}, expected a {kind.__name__}.")
    if is_deep(content):
        raise DamagedFileError(f"{path} is nested more than {_DEEPEST_JSON} deep.")
    return content


# What Python raises where a value is of a kind that nobody thought of.
ODD = (TypeError, AttributeError, KeyError, IndexError, RecursionError, OverflowError, ZeroDivisionError)


@contextmanager
def naming(what: str, kinds: tuple[type[Exception], ...] = ODD) -> Iterator[None]:
    """Where a file is handed to code that trusts it: values of odd kinds end in an error that names the file.

    Args:
        what: What the error calls it.
        kinds: The exceptions that stand for such a value.

    Raises:
        ValueError: In place of them.
    """
    try:
        yield
    except kinds as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{what} holds a value that cannot be, or is nested too deeply ({told}).") from error


def is_deep(content: Any, most: int = _DEEPEST_JSON) -> bool:
    """Whether lists and dictionaries lie in each other more than `most` deep."""
    level: list[Any] = [content]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(inner, dict | list) for inner in level)
