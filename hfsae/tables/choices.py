"""What the rows of a table may stand for."""

from typing import Literal

Level = Literal["document", "token"]
"""What a row stands for."""

Reduce = Literal["max", "mean", "count", "last"]
"""How a document's value of a feature comes from those of its tokens: the largest; the sum over all tokens that count,
divided by their number; the number of tokens on which it fires; or the value on the last token that counts."""
