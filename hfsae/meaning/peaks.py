"""How strongly each feature fires in each of some texts, at most: a sparse table."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.analysis.document_sequences import Documents, DocumentSequenceReader, DocumentSequences
from hfsae.analysis.feature_reader import FeatureReader
from hfsae.autoencoder import SparseAutoencoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Peaks(NamedTuple):
    """The features that fire in N texts.

    Attributes:
        texts: int64 (entries,), the text.
        features: int64 (entries,), the feature.
        values: float32 (entries,), its largest value in the text.
        n_tokens: int64 (N,), tokens of each text that count.
    """

    texts: Tensor
    features: Tensor
    values: Tensor
    n_tokens: Tensor

    def firing(self) -> Tensor:
        """int64 (m,): the features that fire in any text, in their order."""
        return self.features.unique()

    def of(self, kept: Tensor) -> "Peaks":
        """Some of the texts alone; their numbers are new.

        Args:
            kept: bool (N,), which.
        """
        number, mine = kept.cumsum(0) - 1, kept[self.texts]
        return Peaks(number[self.texts[mine]], self.features[mine], self.values[mine], self.n_tokens[kept])

    def dense(self, features: Tensor) -> Tensor:
        """float32 (N, m): some features, 0 where one does not fire.

        Args:
            features: int64 (m,), in their order.
        """
        place = torch.searchsorted(features, self.features).clamp(max=len(features) - 1)
        mine = features[place] == self.features
        table = torch.zeros(len(self.n_tokens), len(features), dtype=torch.float32)
        table[self.texts[mine], place[mine]] = self.values[mine]
        return table


def read_peaks(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    texts: Documents,
    *,
    n_texts: int,
    parts: Sequence[Tensor] | None = None,
    batch_size: int = 16,
) -> Peaks:
    """Reads texts, each by itself; memory grows with the features that fire in each, not with their tokens.

    A text may fall into parts. Each is then told as if it were a text, and is still read in the whole one.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        texts: The texts.
        n_texts: How many there are, or how many parts.
        parts: For each text int64 (tokens,), the part of each token, or one number for all; None: a text is a part.
        batch_size: Pieces per run of the model.
    """
    reader = FeatureReader(sae, model)
    pieces = DocumentSequenceReader(sae.config, model, tokenizer, batch_size=batch_size)
    width = sae.config.n_features
    numbers, values = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float32)
    n_tokens = torch.zeros(n_texts, dtype=torch.int64)
    for batch in pieces.batches(texts):
        firings = reader.read(batch.tokens)
        part = _parts_in(batch, parts)
        n_tokens += torch.bincount(part[batch.tokens.keep], minlength=n_texts)
        numbers = torch.cat([numbers, part.flatten()[firings.tokens] * width + firings.features])
        values = torch.cat([values, firings.values])
        numbers, place = numbers.unique(return_inverse=True)
        values = torch.zeros(len(numbers), dtype=torch.float32).scatter_reduce_(0, place, values, "amax")
    return Peaks(numbers // width, numbers % width, values, n_tokens)


def _parts_in(batch: DocumentSequences, parts: Sequence[Tensor] | None) -> Tensor:
    """int64, as the tokens of a batch: the part of each."""
    found = batch.documents[:, None].repeat(1, batch.tokens.input_ids.shape[1])
    if parts is None:
        return found
    lengths = batch.tokens.attention_mask.sum(1).tolist()
    for row, (document, start) in enumerate(zip(batch.documents.tolist(), batch.starts.tolist(), strict=True)):
        told = parts[document]
        if len(told) == 1:
            found[row] = told
            continue
        # A BOS in front stands at −1. It belongs to what is not marked, which has the larger number.
        front = told.max().expand(max(-start, 0))
        here = torch.cat([front, told[max(start, 0) : start + lengths[row]]])
        found[row, : len(here)] = here
    return found
