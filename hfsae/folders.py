"""Names of files and folders: in records, found again where a tree was moved, and whether a name is free."""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_WILDCARD = re.compile(r"[*?\[]")


def in_full(name: str) -> str:
    """A name as records keep it: the absolute path of what is here; an id of the Hub, or what is not here, stays."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.exists(path) else name


def found_again(values: T, before: Any, now: str | os.PathLike) -> T:
    """Values of a record in which absolute paths that are gone lead to where a tree was moved.

    A path that still exists stays, and so does one that is not found at the same way from the record's new folder.

    Args:
        values: Plain values: texts, and mappings and lists of them.
        before: The folder in which the record was written; what is no absolute path changes nothing.
        now: The folder in which it lies.
    """
    if not isinstance(before, str) or not os.path.isabs(before):
        return values
    return _moved(values, before, os.path.abspath(now))


def can_be_folder(path: str | os.PathLike) -> None:
    """Raises, before something expensive starts, where a folder cannot be written: a file is there, or no right.

    Raises:
        FileExistsError: Names the file.
        PermissionError: Names the folder in which nothing can be written.
    """
    for place in (Path(path), *Path(path).parents):
        if place.exists():
            if not place.is_dir():
                raise FileExistsError(f"{place} is a file, where a folder is to be written: give another name.")
            can_be_written_in(place)
            return


def can_be_file(path: str | os.PathLike) -> None:
    """Raises, before something expensive starts, where a file cannot be written because of a folder, or its own.

    Raises:
        FileExistsError: Names what is in the way.
        PermissionError: Names the folder in which nothing can be written.
    """
    if Path(path).is_dir():
        raise FileExistsError(f"{path} is a folder, where a file is to be written: give another name.")
    can_be_folder(Path(path).parent)


def can_be_written_in(folder: str | os.PathLike) -> None:
    """Raises, before something expensive starts, where no file can be written in a folder that is there.

    Raises:
        PermissionError: Names the folder.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(
            f"nothing can be written in {folder} ({error.strerror}): make it writable, or name another."
        ) from error


def make_folder(folder: Path) -> None:
    """Makes a folder, and asks whether files can be written in it.

    Raises:
        NotADirectoryError: If a file lies there, or a link to nothing.
        PermissionError: If nothing can be written there; names the folder that lets nobody write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        kind = "a link to nothing" if folder.is_symlink() and not folder.exists() else "a file, or lies below one"
        raise NotADirectoryError(f"{folder} is {kind}: choose a folder.") from error
    except OSError:
        can_be_folder(folder)
        raise
    can_be_written_in(folder)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[None]:
    """Makes a folder where there is none; where the context ends in an error, what it made is gone if it is empty.

    Raises:
        NotADirectoryError: If a file lies there, or a link to nothing.
        PermissionError: If nothing can be written there.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):  # something was written: it stays
                path.rmdir()
        raise


def _moved(values: Any, before: str, now: str) -> Any:
    if isinstance(values, Mapping):
        return {name: _moved(value, before, now) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [_moved(value, before, now) for value in values]
    if not isinstance(values, str) or not os.path.isabs(values) or _is_there(values):
        return values
    place = os.path.normpath(os.path.join(now, os.path.relpath(values, before)))
    return place if _is_there(place) else values


def _is_there(path: str) -> bool:
    """Whether a file or folder exists; of a pattern, the folder in which it begins."""
    fixed = _WILDCARD.split(path)[0]
    return os.path.exists(path if fixed == path else os.path.dirname(fixed))
