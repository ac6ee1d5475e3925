"""Names of models and texts that can be published, told from paths of this machine."""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

_FILE_SUFFIXES = {".txt", ".json", ".jsonl", ".csv", ".parquet", ".arrow", ".gz", ".zst"}


def hub_id(name: Any) -> str | None:
    """The name, if it can be the id of a Hub repository; None for a path, a file's name, or no id."""
    if not isinstance(name, str) or not name or PurePosixPath(name).suffix in _FILE_SUFFIXES:
        return None
    try:
        validate_repo_id(name)
        return None if Path(name).exists() else name
    except (HFValidationError, ValueError, OSError):  # no path has zeros in it, or thousands of letters
        return None


def dataset_id(name: Any) -> str | None:
    """Like `hub_id`, for datasets, whose ids have a namespace: `python-stdlib` is none."""
    return hub_id(name) if isinstance(name, str) and "/" in name else None


def without_folders(name: str) -> str:
    """A name fit for publication: of a path outside the working directory only its last part."""
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or name[:1] in ("~", ".")
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if outside else name
