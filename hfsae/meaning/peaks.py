"""How strongly each feature fires in each of some texts, at most: a sparse table."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.analysis.document_sequences import Documents, DocumentSequenceReader
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

    def dense(self, features: Tensor) -> Tensor:
        """float32 (N, m): some features, 0 where one does not fire.

        Args:
            features: int64 (m,), in their order.
        """
        place = torch.searchsorted(features, self.features).clamp(max=len(features) - 1)
        mine = features[place] == self.features
        table = torch.zeros(len(self.n_tokens), len(features))
        table[self.texts[mine], place[mine]] = self.values[mine]
        return table


def read_peaks(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    texts: Documents,
    *,
    n_texts: int,
    batch_size: int = 16,
) -> Peaks:
    """Reads texts, each by itself; memory grows with the features that fire in each, not with their tokens.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        texts: The texts.
        n_texts: How many there are.
        batch_size: Pieces per run of the model.
    """
    reader = FeatureReader(sae, model)
    pieces = DocumentSequenceReader(sae.config, model, tokenizer, batch_size=batch_size)
    width = sae.config.n_features
    numbers, values = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    n_tokens = torch.zeros(n_texts, dtype=torch.int64)
    for batch in pieces.batches(texts):
        firings = reader.read(batch.tokens)
        n_tokens.index_add_(0, batch.documents, batch.tokens.keep.sum(1))
        of_text = batch.documents[firings.tokens // batch.tokens.input_ids.shape[1]]
        numbers = torch.cat([numbers, of_text * width + firings.features])
        values = torch.cat([values, firings.values])
        numbers, place = numbers.unique(return_inverse=True)
        values = torch.zeros(len(numbers)).scatter_reduce_(0, place, values, "amax")
    return Peaks(numbers // width, numbers % width, values, n_tokens)
