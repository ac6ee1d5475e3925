"""Text in files of this machine: which kinds are read, where in a folder they lie, and which line is broken."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

from hfsae.progress import quietly

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SampleBy = Literal["passage", "line", "paragraph", "document"]

_BUILDER_OF = {
    ".txt": "text", ".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
BUILDERS = frozenset(_BUILDER_OF.values())
"""The kinds of files, as `datasets` calls them."""
# Files may be compressed, one by one; the last kind cannot be opened by Python itself.
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": None}
# A passage is long enough to fill a usual context of an LM (about 500 tokens of English).
_PASSAGE_CHARACTERS = 2000


class LocalText(NamedTuple):
    """A file or folder of text, as `datasets.load_dataset` is told of it.

    Attributes:
        source: The name of a builder, or the folder.
        kind: The suffix of the files, such as `".jsonl"`.
        files: All of them.
        data_files: Those to name; None where the folder itself tells them.
    """

    source: str
    kind: str
    files: list[Path]
    data_files: Any

    @classmethod
    def at(cls, path: Path, data_files: str | Sequence[str] | None = None) -> "LocalText":
        """The text in a file or folder.

        Args:
            path: The file or folder.
            data_files: Which files of a folder, as paths or glob patterns inside it.

        Raises:
            FileNotFoundError: If there is no text.
            ValueError: If files are of an unknown kind, of several, or all empty.
        """
        if path.is_file():
            files, kind = [path], _kind_of([path])
            named: Any = {"train": str(path)}
            source = _BUILDER_OF[kind]
        else:
            files, beyond_links = _files_in(path, data_files)
            kind, source, named = _kind_of(files, folder=path), str(path), data_files
            if beyond_links:  # `datasets` does not follow links to folders
                source, named = _BUILDER_OF[kind], {"train": [str(file) for file in files]}
        if not any(file.stat().st_size for file in files):
            raise ValueError(f"{', '.join(map(str, files))} {'is' if len(files) == 1 else 'are'} empty.")
        return cls(source, kind, files, named)

    @property
    def tells_splits(self) -> bool:
        """Whether names of its files may say of which split they are; else all are of `"train"`."""
        return self.source not in _BUILDER_OF.values()

    def load(self, sample_by: SampleBy | None, **options: Any) -> "Dataset | IterableDataset":
        """The dataset, where .txt files need to be told what a document is.

        Args:
            sample_by: As `load_text` takes it.
            **options: `name`, `split` and `streaming` of `datasets.load_dataset`.

        Raises:
            ValueError: If `sample_by` does not apply, or a file is broken; names the file and the line.
        """
        from datasets import load_dataset

        options["data_files"] = self.data_files
        if self.kind != ".txt" and sample_by is not None:
            raise ValueError(f"sample_by={sample_by!r} is for .txt files; a row of a {self.kind} file is one document")
        passages = self.kind == ".txt" and sample_by in (None, "passage")
        if passages:
            options |= {"sample_by": "line", "keep_linebreaks": True}
        elif sample_by is not None:
            options["sample_by"] = sample_by
        with quietly(), self._broken_files_named():
            dataset = load_dataset(self.source, **options)
            return dataset.map(_gather_passages, batched=True, batch_size=1000) if passages else dataset

    @contextmanager
    def _broken_files_named(self) -> Iterator[None]:
        """Says which file could not be read, where `datasets` says only that something could not."""
        from datasets.exceptions import DatasetGenerationError

        try:
            yield
        except (DatasetGenerationError, StopIteration) as error:
            found = (_broken_line(file, self.kind) for file in self.files)
            place = next((place for place in found if place), None)
            cause = " ".join(str(error.__cause__ or error).split())
            several = f"the files {', '.join(file.name for file in self.files)}"
            raise ValueError(
                place or f"cannot read {self.files[0] if len(self.files) == 1 else several}: {cause}"
            ) from error


def is_text_file(path: Path) -> bool:
    """Whether the name is that of a file that is read here."""
    return _suffix(path) in _BUILDER_OF


def _suffix(path: Path) -> str:
    """The kind of a file, compressed or not."""
    return Path(path.stem).suffix if path.suffix in _OPENERS else path.suffix


def _files_in(folder: Path, patterns: str | Sequence[str] | None) -> tuple[list[Path], bool]:
    """The data files of a folder, and whether some lie beyond links to folders."""
    if patterns is not None:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        found = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
        # Other files (a README, a licence without a suffix) may lie beside the data.
        return sorted(file for file in found if is_text_file(file)), False
    files, beyond_links, seen = [], False, set()
    root = Path(os.path.realpath(folder))
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()  # a link that leads back
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = sorted(Path(place, name) for name in names if is_text_file(Path(name)) and not name.startswith("."))
        files += here
        beyond_links |= bool(here) and real != os.path.normpath(root / os.path.relpath(place, folder))
    return files, beyond_links


def _kind_of(files: Sequence[Path], folder: Path | None = None) -> str:
    """The one suffix that all data files share."""
    kinds = sorted({_suffix(file) for file in files})
    if len({_BUILDER_OF.get(kind) for kind in kinds}) == 1 and kinds[0] in _BUILDER_OF:
        return kinds[0]
    known = f"{', '.join(_BUILDER_OF)} (also compressed: {', '.join(_OPENERS)})"
    if folder is None:
        raise ValueError(f"cannot read {files[0]}: expected a file that ends in one of {known}")
    if not kinds:
        raise FileNotFoundError(
            f"no text in {folder.resolve()}: expected files that end in one of {known}, "
            "or a folder written by Dataset.save_to_disk"
        )
    raise ValueError(
        f"{folder} mixes {', '.join(kinds)}: choose with data_files, for example data_files='*{kinds[0]}'"
    )


def _broken_line(file: Path, kind: str) -> str | None:
    """What is wrong with a file of text or JSON, and in which line; None where nothing is found."""
    if not file.stat().st_size:
        return None if _BUILDER_OF[kind] in ("text", "json") else f"{file} is empty: leave it out"
    opener = _OPENERS.get(file.suffix, open)
    if opener is None or _BUILDER_OF[kind] not in ("text", "json", "csv"):
        return None
    with opener(file, "rb") as lines:
        if _BUILDER_OF[kind] == "json" and _begins_a_list(lines):
            return _broken_document(file, lines)
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8")
                if _BUILDER_OF[kind] == "json" and text.strip():
                    json.loads(text)
            except UnicodeDecodeError as error:
                return f"{file}, line {number}: not UTF-8 ({error.reason})"
            except json.JSONDecodeError as error:
                return f"{file}, line {number}: not JSON ({error.msg}, column {error.colno})"
    return None


def _begins_a_list(lines: IO[bytes]) -> bool:
    """Whether a JSON file is one list of rows instead of a row a line."""
    first = lines.read(4096).lstrip()[:1]
    lines.seek(0)
    return first == b"["


def _broken_document(file: Path, content: IO[bytes]) -> str | None:
    try:
        json.loads(content.read().decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"{file}: not UTF-8 ({error.reason}, byte {error.start})"
    except json.JSONDecodeError as error:
        return f"{file}, line {error.lineno}: not JSON ({error.msg}, column {error.colno})"
    return None


def _gather_passages(lines: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Joins lines up to the first empty line after `_PASSAGE_CHARACTERS`: joined again, passages are the file."""
    passages, passage, size = [], [], 0
    for line in lines["text"]:
        passage.append(line)
        size += len(line)
        if size >= _PASSAGE_CHARACTERS and not line.strip():
            passages.append("".join(passage))
            passage, size = [], 0
    if passage:
        passages.append("".join(passage))
    return {"text": passages}
