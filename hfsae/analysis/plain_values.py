"""Features in plain values that pages hold as JSON: rounded figures, and tokens by the numbers of their texts."""

import math
from collections.abc import Sequence
from typing import Any

from hfsae.analysis.collection import Feature
from hfsae.analysis.feature_types import Example
from hfsae.analysis.token_text import TokenTexts

# Significant digits of activations, effects and cosines.
_DIGITS = 4


class Words:
    """Numbers texts in the order in which they come, so that each is written once."""

    def __init__(self):
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._numbers[text]


def feature_content(feature: Feature, texts: TokenTexts, words: Words) -> dict[str, Any]:
    """What the page of one feature shows."""
    return {
        "tokens_firing": feature.tokens_firing,
        "mean": significant(feature.mean),
        "histogram": feature.histogram,
        "bin_width": feature.bin_width,
        "top": [_example(example, texts, words) for example in feature.top],
        "bands": [[_example(example, texts, words) for example in band] for band in feature.quantiles()],
        "promoted": [[texts([token])[0], significant(effect)] for token, effect in feature.promoted],
        "suppressed": [[texts([token])[0], significant(effect)] for token, effect in feature.suppressed],
        "decoder_neighbours": [[near, significant(cosine)] for near, cosine in feature.decoder_neighbours],
        "encoder_neighbours": [[near, significant(cosine)] for near, cosine in feature.encoder_neighbours],
        "co_firing": [[with_, significant(share), significant(often)] for with_, share, often in feature.co_firing],
    }


def _example(example: Example, texts: TokenTexts, words: Words) -> dict[str, Any]:
    return {
        "document": example.document,
        "position": example.position,
        "peak": example.peak,
        "tokens": [words(text) for text in texts(example.token_ids)],
        "activations": rounded(example.activations),
    }


def significant(value: float | None) -> float | None:
    """A value in four significant digits; JSON writes it as short as that. None where it is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    if value == 0:
        return 0
    rounded = round(value, _DIGITS - 1 - math.floor(math.log10(abs(value))))
    return int(rounded) if rounded == int(rounded) else rounded


def rounded(values: Sequence[float]) -> list[float | None]:
    """Values in four significant digits."""
    return [significant(value) for value in values]
