"""Files and folders that appear whole: written beside, then renamed."""

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import psutil

from hfsae.configuration import SAEConfig
from hfsae.storage import appearing_whole, naming_a_full_disk

# What a folder is called while its files are being written.
BESIDE = ".saving-"

# Seconds after which nobody writes into a folder in which nothing has changed.
_LONG_AGO = 24 * 60 * 60


def write_json(path: Path, content: Any) -> None:
    """Writes JSON beside `path` and renames, so that a reader never sees half of it."""
    with appearing_whole(path) as beside:
        beside.write_text(json.dumps(content, indent=2))


@contextmanager
def files_at_once(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder` whose files replace those of the same name when the context ends well."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{BESIDE}*"):
        if _age(left) > _LONG_AGO:  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    with naming_a_full_disk(folder), tempfile.TemporaryDirectory(dir=folder, prefix=BESIDE) as beside:
        yield Path(beside)
        for path in sorted(Path(beside).iterdir()):
            os.replace(path, folder / path.name)


@contextmanager
def folder_at_once(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write to, which becomes it when the context ends well; else nothing is left."""
    folder = folder.absolute()
    beside = folder.with_name(f"{_writing(folder)}{os.getpid()}.part")  # another process may write here, too
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    shutil.rmtree(beside, ignore_errors=True)  # of a killed process that had the same id
    beside.mkdir()
    try:
        with naming_a_full_disk(folder):
            yield beside
            if folder.is_dir():
                folder.rmdir()
            os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _writing(folder: Path) -> str:
    """How what this machine writes beside a folder begins. Of processes elsewhere nothing is known."""
    return f".{folder.name}.{platform.node()}."


def _remove_leftovers(folder: Path) -> None:
    """Removes what processes of this machine that were killed left beside a folder.

    Names of earlier versions say no machine. They go once nothing in them has changed for a day, as then no process of
    another machine is writing them.
    """
    for begin in (_writing(folder), f".{folder.name}."):
        for path in folder.parent.glob(f"{escape(begin)}*.part"):
            number = path.name.removeprefix(begin).removesuffix(".part")
            if not number.isdecimal() or psutil.pid_exists(int(number)):
                continue
            if begin == _writing(folder) or _age(path) > _LONG_AGO:
                shutil.rmtree(path, ignore_errors=True)


def _age(folder: Path) -> float:
    """Seconds since something in a folder changed last; 0 where it is just being removed."""
    try:
        return time.time() - max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:
        return 0.0


def write_config(config: SAEConfig, folder: Path) -> None:
    """Writes `config.json`, whole or not at all."""
    with files_at_once(folder) as beside:
        config.save_pretrained(beside)
