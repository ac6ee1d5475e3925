"""Which features fire where in a few texts, as pages show it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from hfsae.analysis.activations import read_sequences
from hfsae.analysis.plain_values import significant
from hfsae.autoencoder import SparseAutoencoder
from hfsae.functional import SparseFeatures

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_prompts(
    sae: SparseAutoencoder, model: PreTrainedModel, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]
) -> list[dict[str, Any]]:
    """The features of every token of some texts, for `write_dashboard`.

    Args:
        sae: The SAE.
        model: Its language model.
        tokenizer: Its tokenizer.
        texts: The prompts.

    Returns:
        For each prompt its `tokens` (texts) and which of them are `kept` (the SAE's config leaves the others out). For
        each token also the `features` that fire, strongest first, with their `activations`.

    Raises:
        ValueError: If a text is empty.
        HookPointError: If the SAE does not fit the model.
    """
    for number, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"prompt {number} is empty: there is nothing to read in it.")
    prompts: list[dict[str, Any]] = [{"tokens": [], "kept": [], "features": [], "activations": []} for _ in texts]
    pieces = read_sequences(sae, model, tokenizer, list(texts))
    for piece in sorted(pieces, key=lambda piece: (piece.document, piece.positions[0])):
        prompt = prompts[piece.document]
        prompt["tokens"] += piece.texts
        prompt["kept"] += piece.kept
        for values, features in zip(*_strongest_first(piece.features), strict=True):
            prompt["features"].append(features)
            prompt["activations"].append([significant(value) for value in values])
    return prompts


def _strongest_first(features: SparseFeatures) -> tuple[list[list[float]], list[list[int]]]:
    """The values and indices of each token's features; of equal values the lower index first."""
    values, indices = features.values, features.indices
    by_index = indices.argsort(dim=-1, stable=True)
    order = by_index.gather(-1, values.gather(-1, by_index).argsort(dim=-1, descending=True, stable=True))
    counts = (values > 0).sum(-1).tolist()
    both = (part.gather(-1, order).tolist() for part in (values, indices))
    ranked = [[row[:n] for row, n in zip(rows, counts, strict=True)] for rows in both]
    return ranked[0], ranked[1]
