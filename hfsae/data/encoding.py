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

from hfsae.data.chat_messages import message_of, tools_of
from hfsae.data.document_column import DocumentColumn
from hfsae.data.tokenizer_identity import refuse_no_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Tokens: TypeAlias = np.ndarray
# Encodes documents that are there, and what stands beside them: padding masks of token ids, tools of conversations.
Encoder: TypeAlias = Callable[[list[Any], list[Any] | None], list[Tokens]]

# Halves of characters beyond the first 65,536, which Python's texts may hold alone.
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class DocumentEncoder:
    """Encodes the documents of a dataset, whatever their kind; the one place where that is decided.

    Rows without a document (None) become empty. They are counted, and the first of them is told.

    Args:
        contents: What the documents are, and where.
        tokenizer: The language model's tokenizer; token ids need none.
        assistant_only: Of conversations, only what the assistant says may be trained on; the chat template marks it.
        features: The types of the dataset's columns, where they are known.

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
        features: Mapping[str, Any] | None = None,
    ) -> None:
        self._contents = contents
        self.missing = 0
        self._encode: Encoder = _encode_ids
        if contents.kind == "text" and tokenizer is not None:
            self._encode = text_encoder(tokenizer)
        elif contents.kind == "chat" and tokenizer is not None:
            self._encode = _chat_encoder(tokenizer, assistant_only, contents, features or {})

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> list[Tokens]:
        """The tokens of a group of rows, a dict of columns.

        Raises:
            ValueError: If a document is of another kind; shows it.
        """
        column, beside = self._contents.column, self._contents.beside
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
            others = None if beside is None else [rows[beside][i] for i in there]
            for i, tokens in zip(there, self._encode([documents[i] for i in there], others), strict=True):
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
        try:
            encoded = tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise _half_of_a_character(documents) or error from error
        return [_tokens(ids) for ids in encoded["input_ids"]]

    return encode


def dataset_of_list(texts: Sequence[Any]) -> "Dataset":
    """A dataset of texts in a list; None stands for no text.

    Raises:
        TypeError: If one is neither a string nor None.
        ValueError: If one holds half of a character.
    """
    from datasets import Dataset

    for place, text in enumerate(texts):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"text {place} of the list is {reprlib.repr(text)} ({type(text).__name__}), not a string.")
    if (found := _half_of_a_character(texts)) is not None:
        raise found
    return Dataset.from_dict({"text": list(texts)})


def _half_of_a_character(documents: Sequence[str]) -> ValueError | None:
    """What is wrong with texts that no tokenizer reads, where some have lone surrogates; shows the first one."""
    for document in documents:
        if isinstance(document, str) and (found := _SURROGATE.search(document)):
            near = document[max(0, found.start() - 20) : found.start() + 20]
            return ValueError(
                f"a text holds half of a character, {found[0]!r} in {near!r}, which no tokenizer reads: take it out, "
                "or leave that text out."
            )
    return None


def _chat_encoder(
    tokenizer: "PreTrainedTokenizerBase", assistant_only: bool, contents: DocumentColumn, features: Mapping[str, Any]
) -> Encoder:
    """Encodes conversations, and the tools that their assistant has, with the tokenizer's chat template.

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
    of_messages = getattr(features.get(contents.column), "feature", None)
    of_tools = features.get(contents.tools or "")

    def render(conversations: Any, tools: list[Any] | None) -> list[Tokens]:
        try:
            encoded: Any = tokenizer.apply_chat_template(
                conversations,
                tools=tools,
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

    def encode(documents: list[Any], tools: list[Any] | None) -> list[Tokens]:
        conversations = [[message_of(message, of_messages) for message in document] for document in documents]
        if tools is None:
            return render(conversations, None)
        pairs = zip(conversations, tools, strict=True)
        return [render([conversation], tools_of(its_own, of_tools))[0] for conversation, its_own in pairs]

    return encode


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
    added = getattr(tokenizer, "added_tokens_decoder", None)
    added = added if isinstance(added, Mapping) else {}  # of the tokenizers of mistral-common, a method that raises
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
