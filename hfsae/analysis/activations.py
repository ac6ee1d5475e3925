"""Feature activations token by token: `feature_activations`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfsae.analysis.document_sequences import Documents, DocumentSequenceReader
from hfsae.analysis.feature_reader import FeatureReader
from hfsae.analysis.token_text import TokenTexts
from hfsae.analysis.weights import chosen_features
from hfsae.attachment import refuse_swapped
from hfsae.autoencoder import SparseAutoencoder
from hfsae.functional import SparseFeatures
from hfsae.functional.precision import own_default_device

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


class ReadSequence(NamedTuple):
    """A piece of a document with the features of its tokens.

    Attributes:
        document: Row of the dataset.
        positions: Each token's position in its document; −1 for a BOS that was added.
        token_ids: The tokens.
        texts: Their texts, which together are the piece's.
        kept: Which of them count for the SAE; the others have no features.
        features: The active ones of the features that were asked for, of all tokens: (tokens, n_features), float32.
        columns: int64 (m,), which were asked for.
    """

    document: int
    positions: list[int]
    token_ids: list[int]
    texts: list[str]
    kept: list[bool]
    features: SparseFeatures
    columns: Tensor

    @property
    def activations(self) -> Tensor:
        """(tokens, m), float32: what was asked for, as a dense table that is made each time."""
        return self.features.to_dense()[:, self.columns]


def read_sequences(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    documents: Documents,
    features: Sequence[int] | Tensor | None = None,
    *,
    context_length: int | None = None,
    batch_size: int = 16,
    text_column: str | None = None,
) -> Iterator[ReadSequence]:
    """Reads documents piece by piece; an iterator in bounded memory.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        documents: Texts in a list, or a dataset of texts, conversations or token ids.
        features: The features wanted, whose columns `activations` has in this order; None for all.
        context_length: Tokens that the model sees at once; None takes the config's.
        batch_size: Sequences per run of the model.
        text_column: The column of documents; None finds it.

    Yields:
        DocumentSequences, those of the same few documents sorted by length.

    Raises:
        ValueError, TypeError, HookPointError: As `collect_features`.
    """
    refuse_swapped(sae, model)
    chosen = chosen_features(sae, features)
    reader, texts = FeatureReader(sae, model, None if features is None else chosen), TokenTexts(tokenizer)
    pieces = DocumentSequenceReader(sae.config, model, tokenizer, context_length=context_length, batch_size=batch_size)
    for batch in pieces.batches(documents, text_column=text_column):
        ids, mask, keep = batch.tokens
        found = reader.read(batch.tokens).by_token(ids.shape)
        for row, length in enumerate(mask.sum(1).tolist()):
            start = int(batch.starts[row])
            token_ids = ids[row, :length].tolist()
            yield ReadSequence(
                document=int(batch.documents[row]),
                positions=list(range(start, start + length)),
                token_ids=token_ids,
                texts=texts(token_ids),
                kept=keep[row, :length].tolist(),
                features=found[row, :length],
                columns=chosen,
            )


@own_default_device()
def feature_activations(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: "PreTrainedTokenizerBase",
    texts: Documents,
    features: Sequence[int],
    *,
    context_length: int | None = None,
    batch_size: int = 16,
    text_column: str | None = None,
) -> "Dataset":
    """How strongly features fire on every token of some texts, as a table.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        texts: Texts in a list, or a dataset of texts, conversations or token ids.
        features: Which features.
        context_length: Tokens that the model sees at once (longer texts are read in pieces); None takes the config's.
        batch_size: Sequences per run of the model.
        text_column: The column of documents; None finds it.

    Returns:
        A dataset with one row a token, in the order of the texts. Its columns are `document`, `position`, `token_id`,
        `token`, `kept` and `feature_<i>` for each feature. The `token` texts of a document together are the document.
        `kept` is False where the SAE's config leaves the token out. `read_sequences` gives the same piece by piece.

    Raises:
        ValueError, TypeError, HookPointError: As `collect_features`.

    Example:
        >>> table = feature_activations(sae, model, tokenizer, ["def f(self):"], [17, 42])  # doctest: +SKIP
        >>> table.to_pandas().nlargest(3, "feature_17")[["token", "feature_17"]]  # doctest: +SKIP
    """
    from datasets import Dataset

    read = read_sequences(
        sae,
        model,
        tokenizer,
        texts,
        features,
        context_length=context_length,
        batch_size=batch_size,
        text_column=text_column,
    )
    pieces = sorted(read, key=lambda piece: (piece.document, piece.positions[0]))
    columns = {
        "document": [piece.document for piece in pieces for _ in piece.token_ids],
        "position": [position for piece in pieces for position in piece.positions],
        "token_id": [token_id for piece in pieces for token_id in piece.token_ids],
        "token": [text for piece in pieces for text in piece.texts],
        "kept": [kept for piece in pieces for kept in piece.kept],
    }
    values = (
        torch.cat([piece.activations for piece in pieces])
        if pieces
        else torch.zeros(0, len(features), dtype=torch.float32)
    )
    columns |= {f"feature_{feature}": values[:, i].tolist() for i, feature in enumerate(features)}
    return Dataset.from_dict(columns)
