"""Concepts that tokens are labelled with: regular expressions over a text, and the letter that a word begins with."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PYTHON_CONCEPTS: dict[str, str] = {
    "triple-quoted string": r'"""(?:.|\n)*?"""',
    "comment": r"#[^\n]*",
    "import line": r"^(?:from|import) [^\n]*",
    "raise line": r"^ *raise\b[^\n]*",
    "doctest line": r"^ *>>> [^\n]*",
    "the dot of `self.`": r"\bself(\.)",
    "name after `def`": r"\bdef (\w+)",
    "parameters of a `def`": r"\bdef \w+(\([^)]*)",
    "name after `class`": r"^ *class (\w+)",
    "indentation of 4": r"\n {4}(?=[^ \n])",
    "indentation of 8": r"\n {8}(?=[^ \n])",
    "indentation of 12": r"\n {12}(?=[^ \n])",
    "indentation of 16": r"\n {16}(?=[^ \n])",
    "blank line before code": r"\n\n *(?=[^ \n])",
    "dunder name": r"__\w+__",
    "number": r"\b\d+\b",
    "apostrophe of n't": r"\wn(')t\b",
    "`is`": r" is\b",
    "`is not`": r" is( not)\b",
    "upper-case name": r"\b[A-Z][A-Z_]{2,}\b",
    "`isinstance(`": r"\bisinstance(\()",
    "`%` of a format": r"[\"'] (%) ",
}
"""Concepts of Python source. A match means its first group, where it has one."""

_WORD = re.compile(r"(?<![A-Za-z])[A-Za-z]{2}")


class TokenLabels(Protocol):
    """What labels the tokens of a text.

    Attributes:
        names: The concepts.
    """

    names: list[str]

    def __call__(self, tokens: Sequence[str]) -> NDArray[np.bool_]:
        """bool (tokens, concepts), of the texts of tokens that together are a document."""
        ...


class PatternLabels:
    """A token has a concept if its last character lies in a match of the concept's regular expression.

    Args:
        patterns: Regular expressions by the names of concepts; `^` and `$` are ends of lines.

    Raises:
        ValueError: If there is none, or one is no regular expression.

    Example:
        >>> PatternLabels({"number": r"[0-9]+"})(["a", " 12", "3 "]).flatten().tolist()
        [False, True, False]
    """

    def __init__(self, patterns: Mapping[str, str]):
        if not patterns:
            raise ValueError("there are no concepts: give at least one regular expression.")
        self.names = list(patterns)
        self._compiled = []
        for name, pattern in patterns.items():
            try:
                self._compiled.append(re.compile(pattern, re.M))
            except (re.error, TypeError) as error:
                raise ValueError(f"the concept {name!r} is {pattern!r}, no regular expression: {error}.") from error

    def __call__(self, tokens: Sequence[str]) -> NDArray[np.bool_]:
        text, last = "".join(tokens), _last_characters(tokens)
        labels = np.zeros((len(tokens), len(self.names)), bool)
        for column, pattern in enumerate(self._compiled):
            inside = np.zeros(len(text) + 1, bool)
            for match in pattern.finditer(text):
                start, end = match.span(1 if pattern.groups else 0)
                inside[max(start, 0) : max(end, 0)] = True
            labels[:, column] = inside[last]
        return labels


class FirstLetters:
    """A token has a letter if a word begins in it, and begins with that letter, be it a capital.

    Words have two letters at least. Of a token in which several begin the first one counts.

    Example:
        >>> labels = FirstLetters()(["Some", " hat", "ch 4", ".map"])
        >>> [[FirstLetters().names[i] for i in row.nonzero()[0]] for row in labels]
        [['begins with s'], ['begins with h'], [], ['begins with m']]
    """

    names = [f"begins with {letter}" for letter in ascii_lowercase]

    def __call__(self, tokens: Sequence[str]) -> NDArray[np.bool_]:
        text, ends = "".join(tokens), np.cumsum([len(token) for token in tokens], dtype=np.int64)
        labels = np.zeros((len(tokens), len(self.names)), bool)
        starts = np.array([match.start() for match in _WORD.finditer(text)], int)
        holders = np.searchsorted(ends, starts, side="right")
        for start, holder in zip(starts[::-1], holders[::-1], strict=True):
            labels[holder] = False
            labels[holder, ascii_lowercase.index(text[start].lower())] = True
        return labels


def read_concepts(path: str | Path) -> PatternLabels:
    """Concepts of a JSON file, `{"name": "regular expression", ...}`.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it holds something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f'{path} is no JSON: {error}. Expected {{"name": "regular expression", ...}}.') from error
    if not isinstance(found, dict):
        raise ValueError(f'{path} holds no concepts: expected {{"name": "regular expression", ...}}.')
    return PatternLabels(found)


def _last_characters(tokens: Sequence[str]) -> NDArray[np.int64]:
    """Where each token's last character stands; of an empty one that of the token before."""
    return np.maximum(np.cumsum([len(token) for token in tokens], dtype=np.int64) - 1, 0)
