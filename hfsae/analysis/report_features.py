"""The features that the page about a trained SAE shows: some that fire, evenly spaced by how often, with examples."""

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfsae.analysis.collect import collect_features
from hfsae.analysis.feature_types import Feature
from hfsae.analysis.token_text import TokenTexts
from hfsae.autoencoder import SparseAutoencoder
from hfsae.hub.html_report import ShownFeature, ShownToken

logger = logging.getLogger(__name__)

EXAMPLE_TOKENS = 20_000
"""Tokens of text that examples are looked for in."""

_FEATURES = 16
_SHOWN: dict[str, Any] = {"n_top": 4, "n_sample": 1, "before": 14, "after": 8, "n_tokens_promoted": 5}


def report_features(
    sae: SparseAutoencoder,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Any,
    density: Tensor | None = None,
    *,
    max_tokens: int = EXAMPLE_TOKENS,
    text_column: str | None = None,
    disable_tqdm: bool = False,
) -> list[ShownFeature]:
    """Looks in a text for what features fire on.

    Args:
        sae: The SAE, of one source.
        model: The language model.
        tokenizer: Its tokenizer.
        text: Documents.
        density: (n_features,) share of tokens on which each fires; None measures it on this text.
        max_tokens: Tokens of the text to read.
        text_column: Column of the text, where there are several.
        disable_tqdm: Whether to show no progress bar.

    Returns:
        Features without examples are left out; the most frequent come first. None of an SAE whose features may be
        negative: its `by_sign()` has some.
    """
    if sae.signed:
        logger.info(
            "The page shows no features: those of %s may be negative. sae.by_sign() has a page of features.", sae
        )
        return []
    chosen = None if density is None else _evenly_spaced(density)
    if chosen == []:
        return []
    read = {"max_tokens": max_tokens, "text_column": text_column, "disable_tqdm": disable_tqdm}
    collection = collect_features(sae, model, tokenizer, text, features=chosen, **_SHOWN, **read)
    rows = range(len(collection)) if chosen is not None else _evenly_spaced(collection.densities)
    texts = TokenTexts(tokenizer)
    features = [feature for row in rows if (feature := collection[row]).top]
    return sorted(
        (_shown(feature, texts, collection.left_out_note) for feature in features),
        key=lambda feature: -feature.density,
    )


def _evenly_spaced(density: Tensor) -> list[int]:
    """Some features that fire, evenly spaced in the order of how often."""
    ordered = density.argsort(descending=True)[: int((density > 0).sum())].tolist()
    wanted = min(_FEATURES, len(ordered))
    return [ordered[round(place)] for place in torch.linspace(0, len(ordered) - 1, wanted).tolist()] if wanted else []


def _shown(feature: Feature, texts: TokenTexts, left_out_note: str) -> ShownFeature:
    contexts = [
        [
            ShownToken(text, activation, activation / feature.maximum if feature.maximum else 0.0)
            for text, activation in zip(texts(example.token_ids), example.activations, strict=True)
        ]
        for example in feature.top
    ]
    promoted = [texts([effect.token_id])[0] for effect in feature.promoted]
    return ShownFeature(feature.index, feature.density, feature.maximum, promoted, contexts, left_out_note)
