"""Prompts as tokens, begun as the text was that an SAE was trained on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hfsae.data.encoding import adds_bos, bos_token_id, first_id, text_encoder

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


def tokenize(
    texts: str | Sequence[str], tokenizer: "PreTrainedTokenizerBase", *, prepend_bos: bool | None
) -> "BatchEncoding":
    """Makes tokens of prompts: BOS where it belongs there, and no other special token that the texts do not hold.

    Args:
        texts: A prompt or several.
        tokenizer: The language model's tokenizer. Its `padding_side` says where shorter prompts are padded.
        prepend_bos: Whether a prompt begins with BOS, or CLS where there is no BOS (one that begins with it anyway
            gets no second one). None does as the tokenizer does.

    Returns:
        `input_ids` and `attention_mask`, int64 tensors (texts, tokens), as `model(**...)` and `generate` take them.

    Raises:
        ValueError: If a prompt has no token, or BOS is wanted of a tokenizer that has none.
    """
    from transformers import BatchEncoding

    begin = bos_token_id(tokenizer)
    if prepend_bos and begin is None:
        raise ValueError("prepend_bos=True needs a tokenizer with a BOS or CLS token; this one has none.")
    wanted = adds_bos(tokenizer) if prepend_bos is None else prepend_bos
    texts = [texts] if isinstance(texts, str) else list(texts)
    rows = [tokens[0] for tokens in text_encoder(tokenizer)(texts, None)] if texts else []
    if wanted and begin is not None:
        rows = [row if len(row) and row[0] == begin else np.concatenate([[begin], row]) for row in rows]
    empty = [text for text, row in zip(texts, rows, strict=True) if not len(row)]
    if empty or not rows:
        raise ValueError(f"the prompt {empty[0]!r} has no token." if empty else "there is no prompt.")
    longest = max(map(len, rows))
    padding = first_id(tokenizer, "pad_token_id", "eos_token_id") or 0
    ids = torch.full((len(rows), longest), padding)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        on_the_left = tokenizer.padding_side == "left"
        place = slice(longest - len(tokens), None) if on_the_left else slice(0, len(tokens))
        ids[row, place], mask[row, place] = torch.from_numpy(tokens.astype(np.int64)), 1
    return BatchEncoding({"input_ids": ids, "attention_mask": mask})
