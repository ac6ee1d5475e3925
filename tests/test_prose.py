"""Sentences of the README and the docs are short enough for readers whose first language is not English."""

from pathlib import Path

import pytest

from tests.plain_english import long_sentences, page_paragraphs

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_a_sentence_has_at_most_25_words(page):
    assert not long_sentences(page_paragraphs((ROOT / page).read_text()))


def test_what_counts_as_a_sentence():
    long = " ".join(["word"] * 26)
    page = f"# {long}\n\n| {long} |\n\n```python\n{long}\n```\n\n    {long}\n\n![{long}](a.png)\n\n"
    assert not long_sentences(page_paragraphs(page + f"Short. `{long}` counts once."))
    assert long_sentences(page_paragraphs(f"Short.\n\n* {long}.\n  Short.")) == [f"26 words: {long}."]
    assert long_sentences(page_paragraphs(f"Short. W{long}: [a link](to) and `code`. By Gao et al. 2024.")) == [
        f"30 words: W{long}: a link and CODE."
    ]
