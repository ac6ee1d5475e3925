"""Docstrings that a reader understands at once: every public thing opens with one short sentence of plain words."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hfsae"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_WORDS = 25
WORD = re.compile(r"[\w'’.%^+/−-]+")
# Words that make a reader stop, and that a plainer one replaces: "again", "re-".
NOT_PLAIN = re.compile(r"\banew\b", re.IGNORECASE)
of_every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def public(path: Path) -> Iterator[tuple[str, str]]:
    """The module, its public classes and its public functions, with their docstrings."""
    module = ast.parse(path.read_text())
    things = [node for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    yield path.stem, ast.get_docstring(module) or ""
    yield from ((node.name, ast.get_docstring(node) or "") for node in things if not node.name.startswith("_"))


def first_sentence(docstring: str) -> str:
    """Up to the first full stop; what stands in backticks is one word."""
    paragraph = re.split(r"\n\s*\n", docstring)[0]
    plain = re.sub(r"`[^`]*`", "code", " ".join(paragraph.split()))
    return re.split(r"(?<!e\.g)(?<!i\.e)[.?!](?= |$)", plain)[0]


def remarks(path: Path) -> Iterator[str]:
    """All docstrings and comments of a file."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    yield from (token.string for token in tokens if token.type == tokenize.COMMENT)


def test_what_a_first_sentence_is():
    assert first_sentence("Reads `a. b` e.g. twice: once\nmore. And so on.") == "Reads code e.g. twice: once more"


@of_every_file
def test_every_public_thing_opens_with_a_sentence_of_at_most_25_words(path: Path):
    opened = {name: first_sentence(docstring) for name, docstring in public(path)}
    assert [name for name, sentence in opened.items() if not 1 <= len(WORD.findall(sentence)) <= MOST_WORDS] == []


@of_every_file
def test_docstrings_and_comments_are_in_plain_words(path: Path):
    assert [remark for remark in remarks(path) if NOT_PLAIN.search(remark)] == []
