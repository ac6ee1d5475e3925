"""Sentences of the README and the docs are short enough for readers whose first language is not English."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_WORDS = 25
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
_ABBREVIATIONS = re.compile(r"\b(et al|e\.g|i\.e|vs|cf|Fig|No)\.")


def paragraphs(markdown: str) -> Iterator[str]:
    """The paragraphs and list items of a page, without code, tables, headings, pictures and comments."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1 *$", "\n", markdown, flags=re.S | re.M)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        stripped = line.strip()
        item = re.match(r"([*+-]|\d+\.) +", stripped)
        apart = not stripped or stripped.startswith(("|", "#", ":::", "![")) or (line.startswith("    ") and not lines)
        if apart or item:
            if lines:
                yield " ".join(lines)
            lines = []
        if not apart:
            lines.append(stripped[item.end() :] if item else stripped)


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; code counts as one word, a link as its text."""
    text = re.sub(r"`+[^`]+`+", "CODE", paragraph)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = _ABBREVIATIONS.sub(r"\1", text).replace("**", "").replace("*", "")
    return re.split(r"(?<=[.!?])[\"')]*\s+(?=[\"'(\[]*(?:[A-Z0-9Α-ω√]|hfsae |delphi ))", text)


def words(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def long_sentences(markdown: str) -> list[str]:
    found = [sentence for paragraph in paragraphs(markdown) for sentence in sentences(paragraph)]
    return [f"{words(sentence)} words: {sentence}" for sentence in found if words(sentence) > MOST_WORDS]


@pytest.mark.parametrize("page", PAGES)
def test_a_sentence_has_at_most_25_words(page):
    assert not long_sentences((ROOT / page).read_text())


def test_what_counts_as_a_sentence():
    long = " ".join(["word"] * 26)
    page = f"# {long}\n\n| {long} |\n\n```python\n{long}\n```\n\n    {long}\n\n![{long}](a.png)\n\n"
    assert not long_sentences(page + f"Short. `{long}` counts once.")
    assert long_sentences(f"Short.\n\n* {long}.\n  Short.") == [f"26 words: {long}."]
    assert long_sentences(f"Short. W{long}: [a link](to) and `code`. By Gao et al. 2024.") == [
        f"30 words: W{long}: a link and CODE."
    ]
