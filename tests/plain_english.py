"""Paragraphs, sentences and words of pages and docstrings, for the tests that keep them short."""

import re
from collections.abc import Iterator

MOST_WORDS = 25
_ABBREVIATIONS = re.compile(r"\b(et al|e\.g|i\.e|vs|cf|Fig|No)\.")
_ITEM = re.compile(r"([*+-]|\d+\.) +")
_SECTION = re.compile(r"(Args|Attributes|Example|Examples|Note|Raises|Returns|Yields):$")
_ENTRY = re.compile(r"[*\w.]+( \([^)]*\))?: +")


def page_paragraphs(markdown: str) -> Iterator[str]:
    """The paragraphs and list items of a page, without code, tables, headings, pictures and comments."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1 *$", "\n", markdown, flags=re.S | re.M)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        stripped = line.strip()
        item = _ITEM.match(stripped)
        apart = not stripped or stripped.startswith(("|", "#", ":::", "![")) or (line.startswith("    ") and not lines)
        if apart or item:
            if lines:
                yield " ".join(lines)
            lines = []
        if not apart:
            lines.append(stripped[item.end() :] if item else stripped)


def docstring_paragraphs(docstring: str) -> Iterator[str]:
    """The paragraphs, list items and entries of a docstring in Google's style, without names of entries and code."""
    lines: list[str] = []
    section = False
    for line in [*docstring.splitlines(), ""]:
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        heads = indent == 0 and bool(_SECTION.match(stripped))
        item = _ITEM.match(stripped) or (_ENTRY.match(stripped) if section and indent == 4 else None)
        code = stripped.startswith((">>>", "|")) or (indent >= 4 and not section and not lines)
        if not stripped or heads or item or code:
            if lines:
                yield " ".join(lines)
            lines = []
        section = heads or (section and (indent > 0 or not stripped))
        if stripped and not heads and not code:
            lines.append(stripped[item.end() :] if item else stripped)


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; code counts as one word, a link as its text."""
    text = re.sub(r"`+[^`]+`+", "CODE", paragraph)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = _ABBREVIATIONS.sub(r"\1", text).replace("**", "").replace("*", "")
    return re.split(r"(?<=[.!?])[\"')]*\s+(?=[\"'(\[]*(?:[A-Z0-9Α-ω√]|hfsae |delphi ))", text)


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def long_sentences(paragraphs: Iterator[str]) -> list[str]:
    """The sentences with more than `MOST_WORDS` words."""
    found = [sentence for paragraph in paragraphs for sentence in sentences(paragraph)]
    return [f"{words(sentence)} words: {sentence}" for sentence in found if words(sentence) > MOST_WORDS]
