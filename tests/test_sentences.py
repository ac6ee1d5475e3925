"""Docstrings and comments that a reader understands at once: short sentences of plain words."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plain_english import MOST_WORDS, docstring_paragraphs, long_sentences, words

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hfsae"
FILES = sorted(PACKAGE.rglob("*.py"))
# Words that make a reader stop: "again" says the first, and a noun should stand where the others do.
NOT_PLAIN = re.compile(r"\b(anew|those that|what is written)\b", re.IGNORECASE)
WRITTEN = (".py", ".md", ".jinja", ".js", ".html", ".css", ".yaml", ".ipynb")
FOLDERS = ("hfsae", "docs", "examples", "benchmarks")
of_every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def public(path: Path) -> Iterator[tuple[str, str]]:
    """The module, its public classes with their public methods, and its public functions, with their docstrings."""

    def inside(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
        yield name, ast.get_docstring(node) or ""
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and not child.name.startswith("_"):
                if isinstance(child, ast.ClassDef):
                    yield from inside(child, child.name)
                else:
                    yield f"{name}.{child.name}", ast.get_docstring(child) or ""

    return inside(ast.parse(path.read_text()), path.stem)


def first_sentence(docstring: str) -> str:
    """Up to the first full stop; code in backticks is one word."""
    paragraph = re.split(r"\n\s*\n", docstring)[0]
    plain = re.sub(r"`[^`]*`", "code", " ".join(paragraph.split()))
    return re.split(r"(?<!e\.g)(?<!i\.e)[.?!](?= |$)", plain)[0]


def opens_itself(path: Path) -> set[str]:
    """The names of the module and of its public classes and functions, which must say what they are."""
    nodes = ast.parse(path.read_text()).body
    things = {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return {path.stem, *things, *(f"{path.stem}.{name}" for name in things)}


def not_plain(text: str) -> list[str]:
    """The words of a text that a plainer one replaces, wherever its lines break."""
    joined = re.sub(r"\s*\n\s*(?:# |// )?", " ", text)
    return [joined[max(found.start() - 40, 0) : found.end() + 40] for found in NOT_PLAIN.finditer(joined)]


def test_what_a_first_sentence_is():
    assert first_sentence("Reads `a. b` e.g. twice: once\nmore. And so on.") == "Reads code e.g. twice: once more"


def test_what_a_sentence_of_a_docstring_is():
    long = " ".join(["Word"] * 26)
    arguments = f"Args:\n    x: {long[5:]}.\n        Short.\n\n    y_z: {long}.\n"
    raised = f"Raises:\n    ValueError: {long}."
    for entries in (arguments, raised):
        docstring = f"Short.\n\n    {long}\n\n| {long} |\n\n{entries}"
        assert long_sentences(docstring_paragraphs(docstring)) == [f"26 words: {long}."]


def test_what_is_not_plain_is_seen_over_the_end_of_a_line():
    assert not_plain("# of those\n# that fire") and not_plain("What\n    is written") and not not_plain("those thatch")


@of_every_file
def test_every_public_thing_opens_with_a_sentence_of_at_most_25_words(path: Path):
    opened = {name: first_sentence(docstring) for name, docstring in public(path) if name in opens_itself(path)}
    assert [name for name, sentence in opened.items() if not 1 <= words(sentence) <= MOST_WORDS] == []


@of_every_file
def test_no_sentence_of_a_public_docstring_is_longer_than_25_words(path: Path):
    found = {name: long_sentences(docstring_paragraphs(docstring)) for name, docstring in public(path)}
    assert {name: long for name, long in found.items() if long} == {}


def test_docstrings_comments_messages_and_pages_are_in_plain_words():
    """All but dashboards of cards, which show words of a language model."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in WRITTEN]
    inside = [path for path in inside if path.name != "dashboard.html"]
    found = {path.relative_to(ROOT).as_posix(): not_plain(path.read_text()) for path in [*inside, *ROOT.glob("*.md")]}
    assert len(found) > 300 and {name: words for name, words in found.items() if words} == {}
