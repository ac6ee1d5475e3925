"""Cutting documents into blocks: each document after the other, or one document a block."""

from typing import Any

import numpy as np

from hfsae.data.encoding import Tokens


class Packer:
    """Takes encoded documents, gives blocks of at most `length` tokens, and loses none when it mixes documents.

    Args:
        length: Tokens in a block.
        bos: One token (2, 1) that each block begins with, unless it begins with this id anyway; (2, 0) for none.
        separator: One token (2, 1) that follows each document when documents are mixed; (2, 0) for none.
        mix: Join documents and cut the whole (True), or cut each document after the first block (False).

    Attributes:
        blocks: The finished blocks; whoever takes some removes them from the front.
    """

    def __init__(self, length: int, *, bos: Tokens, separator: Tokens, mix: bool) -> None:
        self._length = length
        self._bos = bos
        self._separator = separator
        self._mix = mix
        self._tail = _EMPTY
        self.blocks: list[Tokens] = []

    def add(self, documents: list[Tokens]) -> None:
        """Adds documents; those without a token leave no trace."""
        documents = [document for document in documents if document.shape[1]]
        if self._mix:
            separated = [part for document in documents for part in (document, self._separator)]
            self._cut(np.concatenate([self._tail, *separated], axis=1))
        else:
            self.blocks += [self._block(document)[0] for document in documents]

    def flush(self) -> None:
        """Makes a shorter block of the tokens that are left, if there are any."""
        if self._tail.shape[1]:
            self.blocks.append(self._block(self._tail)[0])
            self._tail = _EMPTY

    def _cut(self, stream: Tokens) -> None:
        start = 0
        while start < stream.shape[1]:
            block, taken = self._block(stream[:, start:])
            if block.shape[1] < self._length:
                break
            self.blocks.append(block)
            start += taken
        self._tail = stream[:, start:]

    def _block(self, stream: Tokens) -> tuple[Tokens, int]:
        """The next block of a stream that is not empty, and how many tokens of the stream it holds."""
        bos = self._bos[:, :0] if np.array_equal(stream[0, :1], self._bos[0]) else self._bos
        taken = stream[:, : self._length - bos.shape[1]]
        return np.concatenate([bos, taken], axis=1), taken.shape[1]

    def state_dict(self) -> dict[str, Any]:
        """The blocks and the tokens that were not taken yet, as lists of integers."""
        return {"blocks": [block.tolist() for block in self.blocks], "tail": self._tail.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was called."""
        self.blocks = [np.array(block, dtype=np.int64) for block in state["blocks"]]
        self._tail = np.array(state["tail"], dtype=np.int64)


_EMPTY: Tokens = np.zeros((2, 0), dtype=np.int64)
