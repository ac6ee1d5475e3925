"""Text of two kinds, books and Python's standard library, for models that were trained on more than one."""

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from hfsae.data.stdlib_text import stdlib_documents
from hfsae.saving import files_at_once

# Characters of a document.
LENGTH = 4000


def books(path: Path) -> Iterator[str]:
    """Consecutive paragraphs of one book, joined to documents.

    Args:
        path: A JSON object a line, with `text` and `book`.
    """
    document, current = "", None
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if document and (record.get("book") != current or len(document) > LENGTH):
                yield document
                document = ""
            current = record.get("book")
            document += record["text"] + "\n\n"
    if document:
        yield document


def library_beginnings() -> Iterator[str]:
    """The beginnings of the library's files."""
    for document in stdlib_documents("train"):
        yield document["text"][:LENGTH]


def library_parts() -> Iterator[str]:
    """All of the library's files, in parts that end with a line."""
    for document in stdlib_documents("train"):
        part = ""
        for line in document["text"].splitlines(keepends=True):
            part += line
            if len(part) > LENGTH:
                yield part
                part = ""
        if part:
            yield part


def books_and_library(path: Path, source: Path, documents: int | None = None) -> Path:
    """The file of text, made where it is not there: a document of books, one of the library, and so on.

    Args:
        path: The file that is written.
        source: The books.
        documents: How many of each kind, spread over all of it, of the library the beginnings of files alone; None
            for everything that there is.
    """
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = [list(books(source)), list(library_parts() if documents is None else library_beginnings())]
    if documents is not None:
        kinds = [kind[:: max(1, len(kind) // documents)][:documents] for kind in kinds]
        kinds = [kind[: min(map(len, kinds))] for kind in kinds]
    with files_at_once(path.parent) as folder, (folder / path.name).open("w", encoding="utf-8") as file:
        for several in zip_longest(*kinds):
            file.writelines(json.dumps({"text": text}) + "\n" for text in several if text is not None)
    return path
