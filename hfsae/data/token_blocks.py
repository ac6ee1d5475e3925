"""Batches of token blocks from a dataset: what the language model reads."""

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hfsae.data.document_column import DocumentColumn, find_document_column
from hfsae.data.documents import DocumentReader, IndexedDocuments, StreamedDocuments, TensorRows
from hfsae.data.encoding import (
    DocumentEncoder,
    Tokens,
    adds_bos,
    bos_token_id,
    first_id,
    one_token,
    special_token_ids,
)
from hfsae.data.left_out import LeftOut
from hfsae.data.packing import Packer
from hfsae.data.tokenizer_identity import refuse_no_tokenizer
from hfsae.processes import refuse_no_process

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class DatasetTooSmallError(ValueError):
    """A dataset does not hold enough tokens for what was asked of it."""


class TokenBatch(NamedTuple):
    """A batch of B blocks of T tokens.

    Attributes:
        input_ids: int64 (B, T), padded on the right where blocks differ in length.
        attention_mask: int64 (B, T), 1 for tokens and 0 for padding.
        keep: bool (B, T), the tokens that are trained on and measured: no padding, no special tokens, no excluded
            positions. Of conversations it is only what the assistant says.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    keep: torch.Tensor


class TokenBlocks:
    """An iterator over batches of token blocks that can be saved and resumed at any batch.

    Documents are tokenised a few at a time. When documents are mixed they are joined and cut into blocks of
    `context_length`. Each document is followed by the tokenizer's EOS (SEP or BOS where it has no EOS). No token is
    lost: what does not fill a block goes into the next one, over the ends of epochs too. Documents without tokens are
    skipped.

    Args:
        dataset: A `datasets.Dataset` or `IterableDataset` of texts, of conversations, or of token ids (and
            `attention_mask` where rows are padded). The type of the column tells which. Or a tensor of token ids
            (rows, length). Rows of token ids are documents that have all the special tokens they need. Rows without a
            document (None) are skipped, counted and said.
        tokenizer: The language model's tokenizer. Only token ids with `exclude_special_tokens=False` need none.
        context_length: Tokens in a block (T).
        batch_size: Blocks in a batch (B).
        text_column: The column of documents. None takes `input_ids`, `text` or `messages`, or else the only column
            that can be one of documents.
        prepend_bos: Whether every block begins with BOS, or CLS where there is no BOS (a block that begins with it
            anyway gets no second one).
            None does as the tokenizer does; conversations and token ids then are taken as they are.
        mix_documents: False gives each document a block of its own, padded to the longest of its batch, without EOS.
            It is cut at `context_length`, and the rest is left out.
        exclude_special_tokens: Leave special tokens out of `keep`.
        further_ids: Ids that are left out with the special tokens, such as a model's own for images.
        exclude_positions: The positions of every block that are left out of `keep`. The first is left out by default:
            in GPT-2-like models its activation is an outlier, whatever its token.
        chat: Documents are conversations, rendered by the tokenizer's chat template: lists of messages with `role`
            and `content`, or `from` and `value`. False takes them too, where nothing else can be documents; None
            prefers them to other columns.
        assistant_only: Keep only what the assistant says; needs a template with `{% generation %}`.
        shuffle: Give each epoch of a map-style dataset its own order, a function of `(seed, epoch)`.
        mixed_tokens: Blocks of so many tokens are tokenised ahead and given out in random order, those of an epoch by
            themselves. A long document else fills many batches on end. 0 keeps the order of the text.
        seed: The seed of these orders, the same in all processes.
        rank: This process; its documents are those at r, r + world_size, ... of each epoch's order.
        world_size: The number of processes. They share no document and leave none out.
        repeat: Begin again at the end of the dataset, for ever. False stops there, with a shorter last block and a
            smaller last batch.
        wanted_tokens: How many tokens that count this process will read, for what is said where there are fewer.

    Attributes:
        prepend_bos: Whether blocks begin with BOS, decided where it was None.
        special_token_ids: The ids that are left out of `keep`, none if special tokens are not excluded.

    Raises:
        DatasetTooSmallError: If one epoch of this process's documents does not fill a batch; with `repeat=False`,
            if there is no token at all. Raised when the object is made.
        ValueError: If options contradict each other, the dataset or the tokenizer.
        TypeError: If `dataset` is of another type.

    Example:
        >>> blocks = TokenBlocks(load_text("data.jsonl"), tokenizer, context_length=128, batch_size=32)
        >>> batch = next(blocks)
        >>> batch.input_ids.shape
        torch.Size([32, 128])
    """

    def __init__(
        self,
        dataset: "Dataset | IterableDataset | torch.Tensor",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        *,
        context_length: int,
        batch_size: int,
        text_column: str | None = None,
        prepend_bos: bool | None = None,
        mix_documents: bool = True,
        exclude_special_tokens: bool = True,
        further_ids: Sequence[int] = (),
        exclude_positions: Sequence[int] = (0,),
        chat: bool | None = False,
        assistant_only: bool = True,
        shuffle: bool = False,
        mixed_tokens: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeat: bool = True,
        wanted_tokens: int | None = None,
    ) -> None:
        _check_sizes(context_length, batch_size, exclude_positions, rank, world_size)
        contents = _contents(dataset, text_column, chat)
        kind = contents.kind
        if tokenizer is None and (kind != "ids" or exclude_special_tokens or prepend_bos):
            raise ValueError(
                "a tokenizer is needed to tokenise text and to know special tokens; without one, "
                "give token ids and pass exclude_special_tokens=False and no prepend_bos"
            )
        if tokenizer is not None:
            refuse_no_tokenizer(tokenizer)
        if prepend_bos and bos_token_id(tokenizer) is None:
            raise ValueError("prepend_bos=True needs a tokenizer with a BOS or CLS token; this one has none")
        self.context_length = context_length
        self.batch_size = batch_size
        self.prepend_bos = kind == "text" and adds_bos(tokenizer) if prepend_bos is None else prepend_bos
        left_out = {*special_token_ids(tokenizer), *further_ids} if exclude_special_tokens else ()
        self.special_token_ids = sorted(left_out)
        self._left_out = LeftOut(tuple(self.special_token_ids), tuple(exclude_positions))
        self._repeat = repeat
        self._encode = DocumentEncoder(
            contents, tokenizer, assistant_only=assistant_only, features=getattr(dataset, "features", None)
        )
        self._documents = _reader(dataset, contents.columns, rank, world_size, shuffle, seed)
        bos = bos_token_id(tokenizer) if self.prepend_bos else None
        # Conversations and token ids bring the special tokens that end them.
        separator = first_id(tokenizer, "eos_token_id", "sep_token_id", "bos_token_id") if kind == "text" else None
        trainable = not (kind == "chat" and assistant_only)
        self._packer = Packer(
            context_length,
            bos=one_token(bos, trainable),
            separator=one_token(separator, trainable),
            mix=mix_documents,
        )
        pad_id = first_id(tokenizer, "pad_token_id", "eos_token_id")
        self._pad_id = 0 if pad_id is None else pad_id
        # What a saved place depends on: it means nothing to blocks that were cut or shared in another way.
        self._settings = {
            "context_length": context_length,
            "batch_size": batch_size,
            "mix_documents": mix_documents,
            "prepend_bos": self.prepend_bos,
            "shuffle": shuffle,
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
        }
        self._mixed_tokens = mixed_tokens
        self._special = np.array(self.special_token_ids, dtype=np.int64)
        self._wanted_tokens = wanted_tokens
        # None where the first epoch was not read from its beginning.
        self._tokens: int | None = 0
        self._has_started = False
        self._fill()
        self._has_started = True

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        if len(self._packer.blocks) < self.batch_size:
            self._fill()
        blocks = self._packer.blocks[: self.batch_size]
        if not blocks:
            raise StopIteration
        del self._packer.blocks[: self.batch_size]
        self._batches_taken += 1
        return self._collate(blocks)

    def _fill(self) -> None:
        """Reads documents until there are blocks enough, mixes them, and remembers where it began to read."""
        self._begin: dict[str, Any] = {
            "documents": self._documents.state_dict(),
            "packer": self._packer.state_dict(),
            "tokens": self._tokens,
        }
        self._batches_taken = 0
        batches = max(1, self._mixed_tokens // (self.batch_size * self.context_length))
        while len(self._packer.blocks) < batches * self.batch_size:
            documents = self._documents.read()
            if documents is not None:
                encoded = self._encode(documents)
                self._count(encoded)
                self._packer.add(encoded)
            elif len(self._packer.blocks) >= self.batch_size:
                break  # what is left of an epoch is mixed by itself
            elif self._repeat and self._has_started and self._documents.position:
                if self._documents.epoch == 0:
                    self._say_repeated()
                self._documents.start_epoch(self._documents.epoch + 1)
            elif self._repeat:
                self._refuse_no_document()
                raise DatasetTooSmallError(
                    f"{self._documents.position} documents for this process fill {len(self._packer.blocks)} of the "
                    f"{self.batch_size} blocks of {self.context_length} tokens in a batch: "
                    "use more text, or a smaller batch_size or context_length"
                )
            else:
                self._encode.say_missing()
                self._packer.flush()
                break
        if not self._packer.blocks and not self._has_started:
            self._refuse_no_document()
            raise DatasetTooSmallError(f"{self._documents.position} documents for this process hold no token")
        if self._mixed_tokens:
            self._mix()

    def _refuse_no_document(self) -> None:
        """Says of text without a document for each process what helps: it may be long enough."""
        processes, nothing = self._settings["world_size"], not (self._documents.epoch or self._documents.position)
        if processes > 1 and nothing:
            raise DatasetTooSmallError(
                f"the text has no document for each of {processes} processes, which share out whole documents: part "
                "it into more documents, or use fewer processes"
            )

    def _mix(self) -> None:
        """Puts the blocks of whole batches in an order that follows from the seed and the place in the text."""
        place, settings = self._begin["documents"], self._settings
        numbers = settings["seed"], settings["rank"], place["epoch"], place["position"]
        blocks, whole = self._packer.blocks, len(self._packer.blocks) // self.batch_size * self.batch_size
        order = np.random.default_rng(numbers).permutation(whole)
        blocks[:whole] = [blocks[row] for row in order]

    def _count(self, documents: list[Tokens]) -> None:
        """Counts what the first epoch holds of tokens that are kept, but for excluded positions."""
        if self._tokens is not None and self._documents.epoch == 0:
            self._tokens += sum(int((tokens[1] & ~np.isin(tokens[0], self._special)).sum()) for tokens in documents)

    def _say_repeated(self) -> None:
        """Tells, at the end of the first epoch, that the text is read again, and how often in all."""
        self._encode.say_missing()
        if self._tokens is None or self._settings["rank"]:
            return
        kept = self._tokens * (1 - len(self._left_out.positions) / self.context_length)
        holds = f"the text holds about {kept * self._settings['world_size']:,.0f} tokens that count"
        if self._wanted_tokens is None or self._wanted_tokens <= kept:
            logger.warning("%s: it is read again from its beginning", holds)
        else:
            times = self._wanted_tokens / max(kept, 1)
            wanted = self._wanted_tokens * self._settings["world_size"]
            logger.warning("%s: it is read %.1f times to train on %s", holds, times, f"{wanted:,}")

    def _collate(self, blocks: list[Tokens]) -> TokenBatch:
        lengths = [block.shape[1] for block in blocks]
        shape = (len(blocks), max(lengths))
        ids, mask, keep = np.full(shape, self._pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
        for row, (block, length) in enumerate(zip(blocks, lengths, strict=True)):
            ids[row, :length] = block[0]
            mask[row, :length] = 1
            keep[row, :length] = block[1]
        input_ids = torch.from_numpy(ids)
        counted = self._left_out.counted_in_blocks(torch.from_numpy(keep), input_ids)
        return TokenBatch(input_ids, torch.from_numpy(mask), counted)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, in values that JSON can hold.

        It names the place where the documents of the current blocks were read, the tokens that were left over there
        and the batches taken since. So it stays small for documents of any size.
        """
        return {
            "settings": self._settings,
            "mixed_tokens": self._mixed_tokens,
            "begin": self._begin,
            "batches_taken": self._batches_taken,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back (or forward) to where `state_dict` was called; the batches after it are equal bit for bit.

        Blocks are mixed as they were there, whatever this object was told.

        Args:
            state: What `state_dict` returned, here or in an earlier process with the same dataset and options.

        Raises:
            ValueError: If the state belongs to blocks with other options.
        """
        different = {
            f"{name} was {state['settings'].get(name)!r}, is {value!r}"
            for name, value in self._settings.items()
            if state["settings"].get(name) != value
        }
        if different:
            raise ValueError(f"this place in the text was saved with other options: {'; '.join(sorted(different))}")
        self._mixed_tokens = state.get("mixed_tokens", 0)  # versions without it mixed none
        self._documents.load_state_dict(state["begin"]["documents"])
        self._packer.load_state_dict(state["begin"]["packer"])
        self._tokens = state["begin"].get("tokens")
        self._fill()
        del self._packer.blocks[: state["batches_taken"] * self.batch_size]
        self._batches_taken = state["batches_taken"]


def _check_sizes(
    context_length: int, batch_size: int, exclude_positions: Sequence[int], rank: int, world_size: int
) -> None:
    if context_length < 2 or batch_size < 1:
        raise ValueError(f"context_length {context_length} and batch_size {batch_size}: expected at least 2 and 1")
    refuse_no_process(rank, world_size)
    if min(exclude_positions, default=0) < 0 or set(exclude_positions) >= set(range(context_length)):
        raise ValueError(
            f"exclude_positions {list(exclude_positions)}: expected positions from 0, "
            f"and not all of the block's {context_length}"
        )


def _contents(
    dataset: "Dataset | IterableDataset | torch.Tensor", text_column: str | None, chat: bool | None
) -> DocumentColumn:
    """What the documents are, and the columns that hold them."""
    if isinstance(dataset, torch.Tensor):
        if dataset.ndim != 2 or dataset.is_floating_point() or chat:
            raise ValueError(
                f"a tensor of shape {tuple(dataset.shape)} and {dataset.dtype}: expected token ids (rows, length) "
                "of an integer type, without chat"
            )
        return DocumentColumn("ids", TensorRows.COLUMN)
    return find_document_column(dataset, text_column, chat=chat)


def _reader(
    dataset: "Dataset | IterableDataset | torch.Tensor",
    columns: list[str],
    rank: int,
    world_size: int,
    shuffle: bool,
    seed: int,
) -> DocumentReader:
    from datasets import Dataset

    if isinstance(dataset, torch.Tensor):
        return IndexedDocuments(TensorRows(dataset), rank=rank, world_size=world_size, shuffle=shuffle, seed=seed)
    # Plain Python values, whatever the user set, and no time spent on columns that nobody reads.
    dataset = dataset.select_columns(columns).with_format(None)
    if isinstance(dataset, Dataset):
        return IndexedDocuments(dataset, rank=rank, world_size=world_size, shuffle=shuffle, seed=seed)
    if shuffle:
        raise ValueError("shuffle=True is for map-style datasets: a stream is read in its own order (load it whole)")
    return StreamedDocuments(dataset, rank=rank, world_size=world_size)
