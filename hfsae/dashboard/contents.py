"""What the page holds, in plain values that become JSON: a small index of all features, and groups with the rest.

The index is read when the page opens; a group is unpacked when one of its features is looked at. So a page with
12,000 features opens as fast as one with a dozen.
"""

import base64
import json
import zlib
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from hfsae.analysis import Feature, FeatureCollection, TokenTexts
from hfsae.analysis.plain_values import Words, feature_content, rounded
from hfsae.hub.names import without_folders

GROUP_SIZE = 64

# Distinct tokens on which a feature fires most that stand for it in lists, and are searched.
_PEAKS = 6


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
                "density": rounded(collection.densities.tolist()),
                "maximum": rounded(collection.statistics.maxima.tolist()),
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


def _about(collection: FeatureCollection) -> dict[str, Any]:
    about = asdict(collection.about)
    shown = {name: without_folders(about[name]) for name in ("base_model", "dataset") if about[name]}
    return about | shown


def _peaks(feature: Feature, texts: TokenTexts) -> list[str]:
    """The tokens of the top examples, the most frequent first."""
    tokens = Counter(texts(example.token_ids)[example.peak] for example in feature.top)
    return [text for text, _ in tokens.most_common(_PEAKS)]
