"""Figures that are made once: what benchmarks that go on where they were interrupted share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hfsae.saving import write_json
from hfsae.storage import read_json


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What a JSON file holds, made first where it is not there.

    It is written whole, and read again at once: a run that goes on sees what one without interruption saw.
    """
    if not file.is_file():
        made = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, made)
    return read_json(file)
