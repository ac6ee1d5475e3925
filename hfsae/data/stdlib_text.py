"""The Python standard library's sources as a text dataset with a fixed train / held-out split.

It is the one corpus of a few megabytes that every machine with Python already has. So examples and tests that need
real text run on it without a network. `examples/make_tiny_lm.py` trains its language model on the train split, and the
dataset name `"python-stdlib"` stands for it.

A file belongs to a split by the hash of its path alone, not of its content. So a module is on the same side of the
split in every version of Python and on every platform.
"""

import hashlib
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

if TYPE_CHECKING:
    from datasets import Dataset

StdlibSplit = Literal["train", "held_out"]

# Tests repeat the code that they test, third-party packages are not the standard library, and both
# differ from one installation to the next.
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_THIRD_PARTY_FOLDERS = frozenset({"site-packages", "dist-packages"})
# Generated files: tables of character codes, and the documentation's topics as string literals.
_TABLE_FOLDERS = frozenset({"encodings", "pydoc_data"})
_SKIPPED_FOLDERS = _TEST_FOLDERS | _THIRD_PARTY_FOLDERS | _TABLE_FOLDERS
# How this very interpreter was built: paths and compiler flags of one machine.
_BUILD_SETTING_PREFIXES = ("config-", "_sysconfigdata")

_SHARES = 5  # one share of the files in five is held out


class StdlibDocument(TypedDict):
    """One source file: its `text`, and its `path` relative to the library's root, with forward slashes."""

    text: str
    path: str


def stdlib_files(split: StdlibSplit) -> list[Path]:
    """The standard library's source files that belong to one split, without tests and generated tables.

    Args:
        split: `"train"` (about four fifths of the files) or `"held_out"` (the rest).

    Returns:
        Absolute paths, in the order of their relative paths.

    Raises:
        ValueError: If `split` is not one of the two.
        FileNotFoundError: If this Python was installed without its sources.

    Example:
        >>> {path.name for path in stdlib_files("train")}.isdisjoint({"test_support.py"})
        True
    """
    if split not in get_args(StdlibSplit):
        raise ValueError(f"split is {split!r}, expected one of {', '.join(map(repr, get_args(StdlibSplit)))}")
    root = _stdlib_root()
    names = sorted(_source_names(root))
    if not names:
        raise FileNotFoundError(
            f"no source files of the standard library in {root}; expected its *.py files there. "
            "Use a Python that was installed with its sources, or another dataset"
        )
    return [root / name for name in names if _split_of(name) == split]


def stdlib_documents(split: StdlibSplit) -> Iterator[StdlibDocument]:
    """Reads one split, one document a file, in the order of `stdlib_files`.

    Line ends are read as `"\\n"` on every platform, and each file in the encoding that it declares (PEP 263).

    Args:
        split: `"train"` or `"held_out"`.

    Yields:
        `{"text": ..., "path": ...}` for each file that is not empty.

    Raises:
        ValueError: If `split` is not one of the two.
        FileNotFoundError: If this Python was installed without its sources.
    """
    root = _stdlib_root()
    for path in stdlib_files(split):
        with tokenize.open(path) as source:
            text = source.read()
        if text:
            yield {"text": text, "path": path.relative_to(root).as_posix()}


def stdlib_digest(split: StdlibSplit) -> str:
    """The SHA-256 of one split's paths and texts: equal digests mean equal datasets.

    Args:
        split: `"train"` or `"held_out"`.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: If `split` is not one of the two.
        FileNotFoundError: If this Python was installed without its sources.
    """
    digest = hashlib.sha256()
    for document in stdlib_documents(split):
        for part in (document["path"], document["text"]):
            encoded = part.encode()
            # The length in front keeps ("ab", "c") and ("a", "bc") apart.
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def stdlib_dataset(split: StdlibSplit) -> "Dataset":
    """One split as a `datasets.Dataset` in memory, with the columns `text` and `path`.

    Args:
        split: `"train"` or `"held_out"`.

    Returns:
        The dataset, one row a file, in the order of `stdlib_files`.

    Raises:
        ValueError: If `split` is not one of the two.
        FileNotFoundError: If this Python was installed without its sources.
    """
    from datasets import Dataset

    return Dataset.from_list([dict(document) for document in stdlib_documents(split)])


def _stdlib_root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _source_names(root: Path) -> Iterator[str]:
    # Skipped folders are not even entered: site-packages may hold a hundred thousand files.
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS and not _is_build_setting(name)]
        for name in files:
            if name.endswith(".py") and not _is_build_setting(name):
                yield (Path(folder) / name).relative_to(root).as_posix()


def _is_build_setting(name: str) -> bool:
    return name.startswith(_BUILD_SETTING_PREFIXES)


def _split_of(name: str) -> StdlibSplit:
    share = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") % _SHARES
    return "held_out" if share == 0 else "train"
