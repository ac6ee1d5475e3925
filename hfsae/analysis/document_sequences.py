"""Documents as a language model reads them here: each cut into pieces of its own, whose tokens know where they stand.

Training joins documents into blocks; whoever looks at examples wants none that begins in another document.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.configuration import SAEConfig
from hfsae.data import TokenBatch, find_document_column
from hfsae.data.document_column import DocumentColumn
from hfsae.data.encoding import DocumentEncoder, Tokens, adds_bos, bos_token_id, dataset_of_list, one_token
from hfsae.data.tokenizer_identity import refuse_no_tokenizer
from hfsae.evaluation.text_batches import reading_of
from hfsae.hooks.limits import context_length_of, refuse_unknown_ids, refuse_without_ids
from hfsae.in_model import left_out_of
from hfsae.processes import refuse_no_process

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

Documents: TypeAlias = "Sequence[str] | Dataset | IterableDataset"
# A document's row, where in it a piece begins, and the piece.
_Piece: TypeAlias = tuple[int, int, Tokens]

# Tokens in a piece where the config does not say on how many the SAE was trained.
_DEFAULT_CONTEXT = 128

# Documents tokenised at once, and batches of pieces that are sorted by length together so that little is padding.
_DOCUMENTS_AT_ONCE = 64
_BATCHES_AT_ONCE = 8


class DocumentSequences(NamedTuple):
    """B pieces of documents, T tokens long at most.

    Attributes:
        tokens: The tokens (B, T), padded on the right, and which of them count for the SAE.
        documents: int64 (B,), the row of the dataset that each piece is from.
        starts: int64 (B,), the position in its document of each piece's first column; −1 where that is a BOS.
    """

    tokens: TokenBatch
    documents: Tensor
    starts: Tensor


class DocumentSequenceReader:
    """Cuts documents into pieces as an SAE's config wants its text: context length, BOS, and the tokens left out.

    Args:
        config: The SAE's config.
        model: The language model that will read the pieces.
        tokenizer: Its tokenizer.
        context_length: Tokens in a piece; None takes the config's.
        batch_size: Sequences in a batch.

    Raises:
        ValueError: If the pieces would be longer than the model's context, or `context_length` or `batch_size` is not
            positive.
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
        refuse_without_ids(model)
        refuse_no_tokenizer(tokenizer)
        for name, given in (("context_length", context_length), ("batch_size", batch_size)):
            if given is not None and given < 1:
                raise ValueError(f"{name} must be positive, got {given}.")
        longest = context_length_of(model)
        self.context_length = (
            context_length or config.context_length or min(_DEFAULT_CONTEXT, longest or _DEFAULT_CONTEXT)
        )
        if longest is not None and self.context_length > longest:
            raise ValueError(
                f"pieces of {self.context_length} tokens, but the language model's context is {longest}: "
                "pass a smaller context_length."
            )
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._prepend_bos = config.prepend_bos
        self._reading = reading_of(config, tokenizer)
        self._left_out = left_out_of(config, model, tokenizer)

    @property
    def cuts(self) -> tuple[Hashable, ...]:
        """What decides which pieces come in which batches, of one tokenizer."""
        reading = tuple(sorted((name, repr(value)) for name, value in self._reading.items()))
        return (self.context_length, self._batch_size, self._prepend_bos, reading, self._left_out)

    def contents(self, dataset: "Dataset | IterableDataset", text_column: str | None = None) -> DocumentColumn:
        """Which column of a dataset holds its documents, and what they are; as `find_document_column` finds it."""
        return find_document_column(dataset, text_column, chat=self._reading["chat"])

    def batches(
        self, documents: Documents, *, text_column: str | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[DocumentSequences]:
        """All pieces of this process's documents, in batches of pieces of about the same length.

        Args:
            documents: Texts in a list, or a dataset of texts, of conversations or of token ids, which the type of
                the column tells. Rows without a document (None) are skipped, counted and said.
            text_column: The column of documents; None finds it.
            rank: This process; its documents are those at r, r + world_size, ...
            world_size: The number of processes.

        Raises:
            TypeError: If `documents` is of another type.
            ValueError: If `rank` is no process of `world_size`. While reading also if the column cannot be told, or a
                token id is not in the model's vocabulary.
        """
        refuse_no_process(rank, world_size)
        return self._batches(documents, text_column, rank, world_size)

    def _batches(
        self, documents: Documents, text_column: str | None, rank: int, world_size: int
    ) -> Iterator[DocumentSequences]:
        waiting: list[_Piece] = []
        for number, bos, tokens in self._encoded(documents, text_column, rank, world_size):
            waiting += self._cut(number, bos, tokens)
            if len(waiting) >= self._batch_size * _BATCHES_AT_ONCE:
                yield from self._collate(waiting)
                waiting = []
        yield from self._collate(waiting)

    def _encoded(
        self, documents: Documents, text_column: str | None, rank: int, world_size: int
    ) -> Iterator[tuple[int, Tokens, Tokens]]:
        """(row, BOS if there is to be one, tokens) of every document of this process."""
        dataset = as_dataset(documents)
        contents = self.contents(dataset, text_column)
        bos = self._bos(contents.kind)
        only = self._reading["assistant_only"]
        encode = DocumentEncoder(contents, self._tokenizer, assistant_only=only, features=dataset.features)
        row = 0
        table = dataset.select_columns(contents.columns).with_format(None)
        for rows in cast(Iterable[dict[str, Any]], table.iter(batch_size=_DOCUMENTS_AT_ONCE)):
            size = len(rows[contents.column])
            mine = [i for i in range(size) if (row + i) % world_size == rank]
            encoded = encode({name: [rows[name][i] for i in mine] for name in contents.columns}) if mine else []
            for i, tokens in zip(mine, encoded, strict=True):
                yield row + i, bos, tokens
            row += size
        encode.say_missing()

    def _bos(self, kind: str) -> Tokens:
        """The BOS in front of a piece, (2, 1) or (2, 0): conversations and token ids have what they need."""
        prepend = self._prepend_bos
        if prepend is None:
            prepend = kind == "text" and adds_bos(self._tokenizer)
        counts = not (kind == "chat" and self._reading["assistant_only"])
        bos = one_token(bos_token_id(self._tokenizer) if prepend else None, counts)
        if bos.shape[1] >= self.context_length:
            raise ValueError(f"a context_length of {self.context_length} holds a BOS alone: pass a larger one.")
        return bos

    def _cut(self, document: int, bos: Tokens, tokens: Tokens) -> Iterator["_Piece"]:
        """The pieces of a document: each begins with BOS where there is to be one, and with no second one."""
        length = tokens.shape[1]
        refuse_unknown_ids(torch.from_numpy(tokens[0]), self._model, self._tokenizer)
        start = 0
        while start < length:
            front = bos[:, :0] if np.array_equal(tokens[0, start : start + 1], bos[0]) else bos
            end = start + self.context_length - front.shape[1]
            # A BOS that is put in front stands one position before the document.
            yield document, start - front.shape[1], np.concatenate([front, tokens[:, start:end]], axis=1)
            start = end

    def _collate(self, pieces: list["_Piece"]) -> Iterator[DocumentSequences]:
        pieces = sorted(pieces, key=lambda piece: -piece[2].shape[1])
        for first in range(0, len(pieces), self._batch_size):
            batch = pieces[first : first + self._batch_size]
            shape = (len(batch), batch[0][2].shape[1])
            ids, mask, counts = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
            for row, (_, _, tokens) in enumerate(batch):
                length = tokens.shape[1]
                ids[row, :length], counts[row, :length] = tokens
                mask[row, :length] = 1
            input_ids, attention_mask = torch.from_numpy(ids), torch.from_numpy(mask)
            keep = self._left_out.counted_in_blocks(torch.from_numpy(counts), input_ids)
            documents, starts = (torch.tensor(column) for column in zip(*(piece[:2] for piece in batch), strict=True))
            yield DocumentSequences(TokenBatch(input_ids, attention_mask, keep), documents, starts)


def as_dataset(documents: Documents) -> "Dataset | IterableDataset":
    """A dataset of what was given.

    Raises:
        TypeError: If it is neither texts nor a dataset; one text alone is no list of texts.
    """
    from datasets import Dataset, IterableDataset

    if isinstance(documents, Dataset | IterableDataset):
        return documents
    if isinstance(documents, list | tuple):
        for number, text in enumerate(documents):
            if not isinstance(text, str):
                raise TypeError(
                    f"document {number} of the list is of type {type(text).__name__}, expected a text: leave it out, "
                    "or give a Dataset, whose rows without a document are skipped."
                )
        return dataset_of_list(documents)
    raise TypeError(
        f"documents are a {type(documents).__name__}; expected a list of texts, a Dataset or an IterableDataset "
        "(choose a split of a DatasetDict)."
    )
