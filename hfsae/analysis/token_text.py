"""The text of single tokens, such that the tokens of a text together are the text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hfsae.data.tokenizer_identity import refuse_no_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What decoding gives for bytes that are no whole character.
_TORN = "\ufffd"

# A character has four bytes at most, so a run of pieces that is longer without completing one never will.
_LONGEST_RUN = 4


class TokenTexts:
    """Gives the texts of the tokens of a sequence, of any tokenizer.

    A token is decoded behind another one, so that its leading space is seen. Where the bytes of a character are spread
    over several tokens, the token that completes it shows it. The tokens before that one show only what came before
    that character.

    Args:
        tokenizer: Any tokenizer of transformers.

    Example:
        >>> texts = TokenTexts(tokenizer)  # doctest: +SKIP
        >>> texts(tokenizer("price: 5 €")["input_ids"])  # doctest: +SKIP
        ['price', ':', ' 5', ' ', '', '€']
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        refuse_no_tokenizer(tokenizer)
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        ids: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
        self._anchor = ids[-1:]
        self._behind = len(self._plain(self._anchor))

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """The text of each token.

        Args:
            ids: Token ids that follow one another.
        """
        texts: list[str] = []
        position = 0
        while position < len(ids):
            run = self._run(ids[position : position + _LONGEST_RUN])
            texts += run
            position += len(run)
        return texts

    def _run(self, ids: Sequence[int]) -> list[str]:
        """The texts of the first token, or of the first few where these make a character together."""
        first = self._alone(ids[0])
        if _TORN not in first:
            return [first]
        for size in range(2, len(ids) + 1):
            if _TORN not in self._decode(ids[:size]):
                whole = [self._decode(ids[:end]).rstrip(_TORN) for end in range(1, size + 1)]
                return [text[len(before) :] for before, text in zip(["", *whole], whole, strict=False)]
        return [first]

    def _alone(self, token_id: int) -> str:
        if token_id not in self._known:
            self._known[token_id] = self._decode([token_id])
        return self._known[token_id]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._plain([*self._anchor, *ids])[self._behind :]

    def _plain(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
