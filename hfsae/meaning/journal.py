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
        self.asked = 0
        """Answers that came from the model, and not from the file."""
        self._chat, self._path = chat, path
        self._known = {} if path is None else _read(path)
        self._file: IO[str] | None = None

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> Iterator[tuple[int, str]]:
        """As the model's own; what is known comes first."""
        keys = [self._key(conversation, max_new_tokens) for conversation in conversations]
        unknown = [number for number, key in enumerate(keys) if key not in self._known]
        yield from ((number, self._known[key]) for number, key in enumerate(keys) if key in self._known)
        for place, text in self._chat.answers([conversations[number] for number in unknown], max_new_tokens):
            self.asked += 1
            self._note(keys[unknown[place]], text)
            yield unknown[place], text

    def tokens_of(self, conversation: Conversation) -> int:
        """As the model counts them."""
        return self._chat.tokens_of(conversation)

    def finish(self) -> None:
        """Removes the file: what it was for is done."""
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file, which stays."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _key(self, conversation: Conversation, max_new_tokens: int) -> str:
        asked = json.dumps([self.name, max_new_tokens, conversation])
        return hashlib.sha256(asked.encode()).hexdigest()

    def _note(self, key: str, text: str) -> None:
        self._known[key] = text
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
