"""From documents to tokens: the three kinds of documents (text, conversations, token ids) and what they become.

Encoded tokens are an int64 array (2, length): row 0 holds the ids, row 1 whether the token may be trained on.
"""

import copy
import logging
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jinja2 import TemplateError

from hfsae.data.document_column import MESSAGE_KEYS, DocumentColumn
from hfsae.data.tokenizer_identity import refuse_no_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Tokens: TypeAlias = np.ndarray
# Encodes documents that are there, and the padding masks of rows of token ids.
Encoder: TypeAlias = Callable[[list[Any], list[Any] | None], list[Tokens]]

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Who speaks in ShareGPT's messages, as chat templates call them.
_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "assistant": "assistant", "system": "system", "tool": "tool",
    "function_response": "tool", "observation": "tool",
}  # fmt: skip


class DocumentEncoder:
    """Encodes the documents of a dataset, whatever their kind; the one place where that is decided.

    Rows without a document (None) become empty. They are counted, and the first of them is told.

    Args:
        contents: What the documents are, and where.
        tokenizer: The language model's tokenizer; token ids need none.
        assistant_only: Of conversations, only what the assistant says may be trained on; the chat template marks it.

    Attributes:
        missing: Rows without a document so far.

    Raises:
        ValueError: If conversations find no chat template, or one that does not mark what the assistant says.
    """

    def __init__(
        self,
        contents: DocumentColumn,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        assistant_only: bool = True,
    ) -> None:
        self._contents = contents
        self.missing = 0
        self._encode: Encoder = _encode_ids
        if contents.kind == "text" and tokenizer is not None:
            self._encode = text_encoder(tokenizer)
        elif contents.kind == "chat" and tokenizer is not None:
            self._encode = _chat_encoder(tokenizer, assistant_only)

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> list[Tokens]:
        """The tokens of a group of rows, a dict of columns.

        Raises:
            ValueError: If a document is of another kind; shows it.
        """
        column, mask = self._contents.column, self._contents.mask
        documents = list(rows[column])
        there = [i for i, document in enumerate(documents) if document is not None]
        if len(there) < len(documents):
            if not self.missing:
                logger.warning("a row has no document in the column %r (None): such rows are skipped", column)
            self.missing += len(documents) - len(there)
        encoded: list[Tokens] = [_EMPTY] * len(documents)
        if there:
            for document in (documents[i] for i in there):
                self._refuse_other(document)
            masks = None if mask is None else [rows[mask][i] for i in there]
            for i, tokens in zip(there, self._encode([documents[i] for i in there], masks), strict=True):
                encoded[i] = tokens
        return encoded

    def say_missing(self) -> None:
        """Tells how many rows had no document, where there were any."""
        if self.missing:
            logger.warning("%d rows without a document in %r were skipped", self.missing, self._contents.column)

    def _refuse_other(self, document: Any) -> None:
        fits = isinstance(document, str) == (self._contents.kind == "text") and hasattr(document, "__len__")
        if not fits:
            expected = {"text": "a text", "chat": "a list of messages", "ids": "a list of token ids"}
            raise ValueError(
                f"the column {self._contents.column!r} holds {reprlib.repr(document)} "
                f"({type(document).__name__}) where {expected[self._contents.kind]} was expected, as in other rows."
            )


def marks_assistant(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer's chat template marks what the assistant says (`{% generation %}`)."""
    refuse_no_tokenizer(tokenizer)
    return tokenizer.chat_template is not None and bool(_GENERATION_TAG.search(tokenizer.get_chat_template()))


def text_encoder(tokenizer: "PreTrainedTokenizerBase") -> Encoder:
    """Encodes strings, without any special tokens around them."""
    refuse_no_tokenizer(tokenizer)
    # A copy of our own: a fast tokenizer that two threads use at once fails with "Already borrowed".
    tokenizer = copy.deepcopy(tokenizer)

    def encode(documents: list[Any], masks: list[Any] | None) -> list[Tokens]:
        # verbose=False: documents longer than the LM's context are cut into blocks, there is nothing to warn about.
        encoded = tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [_tokens(ids) for ids in encoded["input_ids"]]

    return encode


def _chat_encoder(tokenizer: "PreTrainedTokenizerBase", assistant_only: bool) -> Encoder:
    """Encodes conversations with the tokenizer's chat template.

    Raises:
        ValueError: If there is no chat template, or if it does not mark what the assistant says.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "conversations need a tokenizer with a chat template; this one has none: set its chat_template"
        )
    if assistant_only and not marks_assistant(tokenizer):
        raise ValueError(
            "the chat template does not mark what the assistant says with {% generation %} ... {% endgeneration %}: "
            "set a template that does, or pass assistant_only=False to train on whole conversations"
        )
    tokenizer = copy.deepcopy(tokenizer)

    def encode(documents: list[Any], masks: list[Any] | None) -> list[Tokens]:
        conversations: Any = [[_message(message) for message in conversation] for conversation in documents]
        try:
            encoded: Any = tokenizer.apply_chat_template(
                conversations,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=assistant_only,
                tokenizer_kwargs={"verbose": False},
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses a conversation: {error}") from error
        if not assistant_only:
            return [_tokens(ids) for ids in encoded["input_ids"]]
        return [_tokens(*row) for row in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)]

    return encode


def _message(message: Any) -> Mapping[str, Any]:
    """A message as chat templates read it.

    Raises:
        ValueError: If it is made of other things, or nobody known speaks.
    """
    usual, sharegpt = MESSAGE_KEYS
    if isinstance(message, Mapping) and set(usual) <= message.keys():
        return message
    if not isinstance(message, Mapping) or not set(sharegpt) <= message.keys():
        raise ValueError(
            f"a message is {reprlib.repr(message)}: expected one with role and content, or with from and value."
        )
    role = _ROLES.get(message["from"])
    if role is None:
        raise ValueError(f"a message is from {message['from']!r}: expected one of {', '.join(_ROLES)}.")
    return {"role": role, "content": message["value"]}


def _encode_ids(documents: list[Any], masks: list[Any] | None) -> list[Tokens]:
    """Takes token ids as they are, less what a mask marks as padding."""
    rows = [_tokens(ids) for ids in documents]
    if masks is None:
        return rows
    return [row[:, np.asarray(mask, dtype=bool)] for row, mask in zip(rows, masks, strict=True)]


def special_token_ids(tokenizer: "PreTrainedTokenizerBase | None") -> list[int]:
    """Every id that the tokenizer calls special: BOS, EOS, padding, unknown, and the marks of chat templates."""
    if tokenizer is None:
        return []
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({*tokenizer.all_special_ids, *(token_id for token_id, token in added.items() if token.special)})


def as_ranges(token_ids: Sequence[int]) -> list[list[int]]:
    """Sorted ids as first and last of each unbroken run: models reserve hundreds of special tokens in a row."""
    ranges: list[list[int]] = []
    for token_id in token_ids:
        if ranges and token_id == ranges[-1][1] + 1:
            ranges[-1][1] = token_id
        else:
            ranges.append([token_id, token_id])
    return ranges


def adds_bos(tokenizer: "PreTrainedTokenizerBase | None") -> bool:
    """Whether the tokenizer itself begins a text with BOS, which tells how its LM was trained."""
    begin = bos_token_id(tokenizer)
    if tokenizer is None or begin is None:
        return False
    ids: Any = tokenizer("a", return_attention_mask=False)["input_ids"]
    return ids[:1] == [begin]


def bos_token_id(tokenizer: "PreTrainedTokenizerBase | None") -> int | None:
    """What begins a text: BOS, or CLS where there is no BOS (BERT, ESM-2); None where there is neither."""
    return first_id(tokenizer, "bos_token_id", "cls_token_id")


def first_id(tokenizer: "PreTrainedTokenizerBase | None", *names: str) -> int | None:
    """The first of these special tokens that the tokenizer has; 0 is an id as good as any."""
    ids = (getattr(tokenizer, name, None) for name in names)
    return next((token_id for token_id in ids if token_id is not None), None)


def _tokens(ids: Any, trainable: Any = 1) -> Tokens:
    tokens = np.ones((2, len(ids)), dtype=np.int64)
    tokens[0] = ids
    tokens[1] = trainable
    return tokens


def one_token(token_id: Any, trainable: bool) -> Tokens:
    """One token (2, 1), or none (2, 0) where it has no id."""
    return _EMPTY if token_id is None else _tokens([token_id], trainable)


_EMPTY: Tokens = np.zeros((2, 0), dtype=np.int64)
