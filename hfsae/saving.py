"""Files and folders that appear whole: written beside, then renamed."""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import psutil

from hfsae.configuration import SAEConfig
from hfsae.storage import appearing_whole

# What a folder is called while its files are being written.
BESIDE = ".saving-"


def write_json(path: Path, content: Any) -> None:
    """Writes JSON beside `path` and renames, so that a reader never sees half of it."""
    with appearing_whole(path) as beside:
        beside.write_text(json.dumps(content, indent=2))


@contextmanager
def files_at_once(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder` whose files replace those of the same name when the context ends well."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=BESIDE) as beside:
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
    """Removes what processes of this machine that were killed left beside a folder."""
    for path in folder.parent.glob(f"{escape(_writing(folder))}*.part"):
        number = path.name.removeprefix(_writing(folder)).removesuffix(".part")
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def write_config(config: SAEConfig, folder: Path) -> None:
    """Writes `config.json`, whole or not at all."""
    with files_at_once(folder) as beside:
        config.save_pretrained(beside)
