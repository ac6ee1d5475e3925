"""What the page holds, in plain values that become JSON: a small index of all features, and groups with the rest.

The index is read when the page opens; a group is unpacked when one of its features is looked at. So a page with
12,000 features opens as fast as one with a dozen.
"""

import base64
import json
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hfsae.analysis import Example, Feature, FeatureCollection, TokenTexts
from hfsae.hub.names import without_folders

GROUP_SIZE = 64

# Distinct tokens on which a feature fires most that stand for it in lists, and are searched.
_PEAKS = 6

# Significant digits of activations, effects and cosines.
_DIGITS = 4


@dataclass(frozen=True)
class Contents:
    """The features of a collection as the page reads them.

    Attributes:
        index: What lists, search and the overview need of all features.
        groups: Everything else, packed (`pack`), of `GROUP_SIZE` features each, in their order.
    """

    index: dict[str, Any]
    groups: list[str]

    @classmethod
    def of(cls, collection: FeatureCollection, texts: TokenTexts) -> "Contents":
        """Writes out a collection.

        Args:
            collection: The features.
            texts: Gives the texts of its tokens.
        """
        peaks: list[list[str]] = []
        groups = []
        for start in range(0, len(collection), GROUP_SIZE):
            features = [collection[row] for row in range(start, min(start + GROUP_SIZE, len(collection)))]
            words = Words()
            groups.append(
                pack({"features": [feature_content(f, texts, words) for f in features], "texts": words.texts})
            )
            peaks += [_peaks(feature, texts) for feature in features]
        index = {
            "about": _about(collection),
            "group_size": GROUP_SIZE,
            "features": {
                "index": collection.features.tolist(),
                "density": _rounded(collection.densities.tolist()),
                "maximum": _rounded(collection.statistics.maxima.tolist()),
                "peaks": peaks,
            },
        }
        return cls(index, groups)


def pack(content: Any) -> str:
    """JSON, compressed (zlib) and in base64: text that means nothing to HTML and JavaScript."""
    return base64.b64encode(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 6)).decode()


def unpack(packed: str) -> Any:
    """The reverse of `pack`, as the page does it."""
    return json.loads(zlib.decompress(base64.b64decode(packed)))


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


def _about(collection: FeatureCollection) -> dict[str, Any]:
    about = asdict(collection.about)
    shown = {name: without_folders(about[name]) for name in ("base_model", "dataset") if about[name]}
    return about | shown


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
        "activations": _rounded(example.activations),
    }


def _peaks(feature: Feature, texts: TokenTexts) -> list[str]:
    """The tokens of the top examples, the most frequent first."""
    tokens = Counter(texts(example.token_ids)[example.peak] for example in feature.top)
    return [text for text, _ in tokens.most_common(_PEAKS)]


def significant(value: float) -> float:
    """A value in four significant digits; JSON writes it as short as that."""
    if value == 0 or not math.isfinite(value):
        return 0
    rounded = round(value, _DIGITS - 1 - math.floor(math.log10(abs(value))))
    return int(rounded) if rounded == int(rounded) else rounded


def _rounded(values: Sequence[float]) -> list[float]:
    return [significant(value) for value in values]
