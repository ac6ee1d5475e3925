"""From documents to tokens: the three kinds of documents (text, conversations, token ids) and what they become.

Encoded tokens are an int64 array (2, length): row 0 holds the ids, row 1 whether the token may be trained on.
"""

import copy
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens: TypeAlias = np.ndarray
Encoder: TypeAlias = Callable[[Mapping[str, Any]], list[Tokens]]

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


def text_encoder(tokenizer: "PreTrainedTokenizerBase", column: str) -> Encoder:
    """Encodes a column of strings, without any special tokens around them."""
    # A copy of our own: a fast tokenizer that two threads use at once fails with "Already borrowed".
    tokenizer = copy.deepcopy(tokenizer)

    def encode(documents: Mapping[str, Any]) -> list[Tokens]:
        # verbose=False: documents longer than the LM's context are cut into blocks, there is nothing to warn about.
        encoded = tokenizer(documents[column], add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [_tokens(ids) for ids in encoded["input_ids"]]

    return encode


def chat_encoder(tokenizer: "PreTrainedTokenizerBase", column: str, assistant_only: bool) -> Encoder:
    """Encodes a column of conversations with the tokenizer's chat template.

    Args:
        tokenizer: A tokenizer with a chat template.
        column: The column of messages, lists of `{"role": ..., "content": ...}`.
        assistant_only: Only what the assistant said may be trained on, as the template marks it.

    Returns:
        The encoder.

    Raises:
        ValueError: If there is no chat template, or if it does not mark what the assistant says.
    """
    if tokenizer.chat_template is None:
        raise ValueError("chat=True needs a tokenizer with a chat template; this one has none: set its chat_template")
    if assistant_only and not _GENERATION_TAG.search(tokenizer.get_chat_template()):
        raise ValueError(
            "the chat template does not mark what the assistant says with {% generation %} ... {% endgeneration %}: "
            "set a template that does, or pass assistant_only=False to train on whole conversations"
        )
    tokenizer = copy.deepcopy(tokenizer)

    def encode(documents: Mapping[str, Any]) -> list[Tokens]:
        encoded: Any = tokenizer.apply_chat_template(
            documents[column],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=assistant_only,
            tokenizer_kwargs={"verbose": False},
        )
        if not assistant_only:
            return [_tokens(ids) for ids in encoded["input_ids"]]
        return [_tokens(*row) for row in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)]

    return encode


def encode_ids(documents: Mapping[str, Any]) -> list[Tokens]:
    """Takes the column `input_ids` as it is, less what the column `attention_mask` marks as padding."""
    rows = [_tokens(ids) for ids in documents["input_ids"]]
    if "attention_mask" not in documents:
        return rows
    masks = [np.asarray(mask, dtype=bool) for mask in documents["attention_mask"]]
    return [row[:, mask] for row, mask in zip(rows, masks, strict=True)]


def special_token_ids(tokenizer: "PreTrainedTokenizerBase | None") -> list[int]:
    """Every id that the tokenizer calls special: BOS, EOS, padding, unknown, and the marks of chat templates."""
    if tokenizer is None:
        return []
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({*tokenizer.all_special_ids, *(token_id for token_id, token in added.items() if token.special)})


def adds_bos(tokenizer: "PreTrainedTokenizerBase | None") -> bool:
    """Whether the tokenizer itself begins a text with BOS, which tells how its LM was trained."""
    if tokenizer is None or tokenizer.bos_token_id is None:
        return False
    ids: Any = tokenizer("a", return_attention_mask=False)["input_ids"]
    return ids[:1] == [tokenizer.bos_token_id]


def _tokens(ids: Any, trainable: Any = 1) -> Tokens:
    tokens = np.ones((2, len(ids)), dtype=np.int64)
    tokens[0] = ids
    tokens[1] = trainable
    return tokens
