"""Answers that were given are kept: a run that ended in the middle goes on without asking for them again.

A line of the file is one answer, under the digest of what was asked. A line that was not written to its end is asked
for again.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from hfsae.meaning.chat import Chat, Conversation


class Journal:
    """A chat model whose answers are written down as they come.

    Args:
        chat: The model.
        path: The file; None keeps answers in memory alone.
    """

    def __init__(self, chat: Chat, path: Path | None = None):
        self.name, self.at_once = chat.name, chat.at_once
        self._chat, self._kind = chat, ""
        self._notes = _Notes(path)

    @property
    def asked(self) -> int:
        """Answers that came from a model, and not from the file."""
        return self._notes.added

    def beside(self, chat: Chat, kind: str) -> "Journal":
        """Another way to ask, whose answers are written into the same file.

        Args:
            chat: What answers.
            kind: A name, under which its answers are kept apart from those of the same questions asked otherwise.
        """
        other = Journal(chat)
        other._kind, other._notes = kind, self._notes
        return other

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """As the model's own; what is known comes first."""
        keys = [self._key(conversation, max_new_tokens) for conversation in conversations]
        known = self._notes.known
        unknown = [number for number, key in enumerate(keys) if key not in known]
        yield from [(number, known[key]) for number, key in enumerate(keys) if key in known]
        for place, text in self._chat.answers([conversations[number] for number in unknown], max_new_tokens):
            self._notes.add(keys[unknown[place]], text)
            yield unknown[place], text

    def tokens_of(self, conversation: Conversation) -> int:
        """As the model counts them."""
        return self._chat.tokens_of(conversation)

    def finish(self) -> None:
        """Removes the file: what it was for is done."""
        self._notes.finish()

    def close(self) -> None:
        """Closes the file, which stays."""
        self._notes.close()

    def _key(self, conversation: Conversation, max_new_tokens: int) -> str:
        kind = [self._kind] if self._kind else []
        asked = json.dumps([self.name, max_new_tokens, conversation, *kind])
        return hashlib.sha256(asked.encode()).hexdigest()


class _Notes:
    """The file of a journal, and what it holds."""

    def __init__(self, path: Path | None):
        self.known = {} if path is None else _read(path)
        self.added = 0
        self._path = path
        self._file: IO[str] | None = None

    def finish(self) -> None:
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, key: str, text: str) -> None:
        self.known[key] = text
        self.added += 1
        if self._path is None:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
            if self._path.stat().st_size and not _ends_a_line(self._path):
                self._file.write("\n")
        self._file.write(json.dumps([key, text]) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _read(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    known: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            key, text = json.loads(line)
        except (ValueError, TypeError):
            continue  # cut off in the middle
        if isinstance(key, str) and isinstance(text, str):
            known[key] = text
    return known


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
