"""Documents as a language model reads them here: each cut into pieces of its own, whose tokens know where they stand.

Training joins documents into blocks; whoever looks at examples wants none that begins in another document.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.configuration import SAEConfig
from hfsae.data import TokenBatch, document_column
from hfsae.data.encoding import Encoder, adds_bos, encode_ids, special_token_ids, text_encoder
from hfsae.data.text import find_text_column

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

Documents: TypeAlias = "Sequence[str] | Dataset | IterableDataset"

# Tokens in a piece where the config does not say on how many the SAE was trained.
_DEFAULT_CONTEXT = 128

# Documents tokenised at once, and batches of pieces that are sorted by length together so that little is padding.
_DOCUMENTS_AT_ONCE = 64
_BATCHES_AT_ONCE = 8


class Pieces(NamedTuple):
    """B pieces of documents, T tokens long at most.

    Attributes:
        tokens: The tokens (B, T), padded on the right, and which of them count for the SAE.
        documents: int64 (B,), the row of the dataset that each piece is from.
        starts: int64 (B,), the position in its document of each piece's first column; −1 where that is a BOS.
    """

    tokens: TokenBatch
    documents: Tensor
    starts: Tensor


class PieceReader:
    """Cuts documents into pieces as an SAE's config wants its text: context length, BOS, and the tokens left out.

    Args:
        config: The SAE's config.
        model: The language model that will read the pieces.
        tokenizer: Its tokenizer.
        context_length: Tokens in a piece; None takes the config's.
        batch_size: Pieces in a batch.

    Raises:
        ValueError: If the pieces would be longer than the model's context.
    """

    def __init__(
        self,
        config: SAEConfig,
        model: PreTrainedModel,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        context_length: int | None = None,
        batch_size: int = 32,
    ):
        text_config = model.config.get_text_config()
        longest = getattr(text_config, "max_position_embeddings", None)
        self.context_length = context_length or config.context_length or min(_DEFAULT_CONTEXT, longest or 128)
        if longest is not None and self.context_length > longest:
            raise ValueError(
                f"pieces of {self.context_length} tokens, but the language model's context is {longest}: "
                "pass a smaller context_length."
            )
        self._vocabulary: int = text_config.vocab_size
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        prepend_bos = adds_bos(tokenizer) if config.prepend_bos is None else config.prepend_bos
        self._bos = [tokenizer.bos_token_id] if prepend_bos and tokenizer.bos_token_id is not None else []
        self._special = torch.tensor(special_token_ids(tokenizer) if config.exclude_special_tokens else [])
        self._positions = [position for position in config.exclude_positions if position < self.context_length]

    def batches(
        self, documents: Documents, *, text_column: str | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Pieces]:
        """All pieces of this process's documents, in batches of pieces of about the same length.

        Args:
            documents: Texts in a list, or a dataset of texts or of token ids (`input_ids`).
            text_column: The column of documents; None finds it.
            rank: This process; its documents are those at r, r + world_size, ...
            world_size: The number of processes.

        Raises:
            TypeError: If `documents` is of another type.
            ValueError: If the column cannot be told, or a token id is not in the model's vocabulary.
        """
        waiting: list[tuple[int, int, np.ndarray]] = []
        for number, ids in self._encoded(documents, text_column, rank, world_size):
            waiting += self._cut(number, ids)
            if len(waiting) >= self._batch_size * _BATCHES_AT_ONCE:
                yield from self._collate(waiting)
                waiting = []
        yield from self._collate(waiting)

    def _encoded(
        self, documents: Documents, text_column: str | None, rank: int, world_size: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(row, token ids) of every document of this process."""
        dataset = as_dataset(documents)
        column = document_column(dataset, text_column) or find_text_column(dataset)
        is_ids = column == "input_ids"
        names = [column, *(["attention_mask"] if is_ids and "attention_mask" in (dataset.column_names or ()) else [])]
        encode: Encoder = encode_ids if is_ids else text_encoder(self._tokenizer, column)
        row = 0
        for rows in cast(Iterable[dict[str, Any]], dataset.with_format(None).iter(batch_size=_DOCUMENTS_AT_ONCE)):
            size = len(rows[column])
            mine = [i for i in range(size) if (row + i) % world_size == rank]
            encoded = encode({name: [rows[name][i] for i in mine] for name in names}) if mine else []
            for i, tokens in zip(mine, encoded, strict=True):
                yield row + i, tokens[0]
            row += size

    def _cut(self, document: int, ids: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """(document, start, ids) of a document's pieces; ids begin with BOS where there is one."""
        if len(ids) and ids.max() >= self._vocabulary:
            raise ValueError(
                f"token id {ids.max()}, but the language model knows {self._vocabulary} tokens: use the tokenizer "
                "that belongs to it."
            )
        step = self.context_length - len(self._bos)
        for start in range(0, len(ids), step):
            yield document, start - len(self._bos), np.concatenate([self._bos, ids[start : start + step]])

    def _collate(self, pieces: list[tuple[int, int, np.ndarray]]) -> Iterator[Pieces]:
        pieces = sorted(pieces, key=lambda piece: -len(piece[2]))
        for first in range(0, len(pieces), self._batch_size):
            batch = pieces[first : first + self._batch_size]
            shape = (len(batch), len(batch[0][2]))
            ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
            for row, (_, _, tokens) in enumerate(batch):
                ids[row, : len(tokens)] = tokens
                mask[row, : len(tokens)] = 1
            input_ids, attention_mask = torch.from_numpy(ids), torch.from_numpy(mask)
            keep = attention_mask.bool() & ~torch.isin(input_ids, self._special)
            keep[:, [position for position in self._positions if position < shape[1]]] = False
            documents, starts = (torch.tensor(column) for column in zip(*(piece[:2] for piece in batch), strict=True))
            yield Pieces(TokenBatch(input_ids, attention_mask, keep), documents, starts)


def as_dataset(documents: Documents) -> "Dataset | IterableDataset":
    """A dataset of what was given.

    Raises:
        TypeError: If it is neither texts nor a dataset; one text alone is no list of texts.
    """
    from datasets import Dataset, IterableDataset

    if isinstance(documents, Dataset | IterableDataset):
        return documents
    if isinstance(documents, list | tuple) and all(isinstance(text, str) for text in documents):
        return Dataset.from_dict({"text": list(documents)})
    raise TypeError(
        f"documents are a {type(documents).__name__}; expected a list of texts, a Dataset or an IterableDataset "
        "(choose a split of a DatasetDict)."
    )
