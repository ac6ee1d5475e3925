"""What the page holds, in plain values that become JSON: a small index of all features, and groups with the rest.

The index is read when the page opens; a group is unpacked when one of its features is looked at. So a page with
12,000 features opens as fast as one with a dozen.
"""

import base64
import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfsae.analysis import Feature, FeatureCollection, FeatureMap, TokenTexts
from hfsae.analysis.feature_types import TokenEffect
from hfsae.analysis.plain_values import Words, feature_content, rounded, significant
from hfsae.hub.hub_ids import without_folders
from hfsae.webpage import as_json

GROUP_SIZE = 64

# Distinct tokens on which a feature fires most that stand for it in lists, and are searched.
_PEAKS = 6

# Tokens that stand for a group of the map.
_WORDS = 4


@dataclass(frozen=True)
class InSource:
    """What one source of a crosscoder has of a feature.

    Args:
        name: The source.
        norm: Length of the feature's decoder row there, as a part of the longest.
        error: β of the source's error; None where it is not known.
        reconstruction: β of the source's reconstruction, likewise.
        promoted: Tokens that it makes likelier in the source's own model, with their effects.
    """

    name: str
    norm: float
    error: float | None = None
    reconstruction: float | None = None
    promoted: Sequence[TokenEffect] = ()


@dataclass(frozen=True)
class Compared:
    """What the comparison of a crosscoder's sources says of a feature: its class, and each source."""

    kind: str
    sources: Sequence[InSource]


@dataclass(frozen=True)
class Comparison:
    """What the comparison of a crosscoder's sources says of all of it.

    Args:
        models: The language model of each source, by its name; None where it is not known.
        by_norms: How many features each class has by norms alone, all of the crosscoder's.
        counts: The same after latent scaling.
        by_scaling: The same by latent scaling alone.
        features: What it says of each feature that is shown.
    """

    models: Mapping[str, str | None]
    by_norms: Mapping[str, int]
    counts: Mapping[str, int]
    by_scaling: Mapping[str, int]
    features: Mapping[int, Compared]


@dataclass(frozen=True)
class MeasuredFigure:
    """A figure that was measured of the SAE, as the overview shows it.

    Args:
        title: What people call it.
        value: The figure.
        healthy: Where good SAEs lie, in words; empty where that is not known.
        outside: Whether the figure is said to lie elsewhere.
    """

    title: str
    value: float
    healthy: str = ""
    outside: bool = False


@dataclass(frozen=True)
class Matches:
    """The features of another SAE that the features of this one are paired with.

    Args:
        name: What the other SAE is called.
        page: Its dashboard; None where it has none.
        pairs: Its feature and the cosine of the decoder rows, by the feature of this SAE.
        chance: The mean cosine of pairs with random directions.
    """

    name: str
    page: Path | None
    pairs: Mapping[int, tuple[int, float]]
    chance: float


@dataclass(frozen=True)
class PageContents:
    """The features of a collection as the page reads them.

    Attributes:
        index: What lists, search and the overview need of all features.
        groups: Everything else, packed (`pack`), of `GROUP_SIZE` features each, in their order.
    """

    index: dict[str, Any]
    groups: list[str]

    @classmethod
    def of(
        cls,
        collection: FeatureCollection,
        texts: TokenTexts,
        comparison: Comparison | None = None,
        layout: FeatureMap | None = None,
    ) -> "PageContents":
        """Writes out a collection.

        Args:
            collection: The features.
            texts: Gives the texts of its tokens.
            comparison: Of a crosscoder what its sources share.
            layout: Where features stand on the map; None for a page without one.
        """
        compared = {} if comparison is None else comparison.features
        peaks: list[list[str]] = []
        groups = []
        for start in range(0, len(collection), GROUP_SIZE):
            features = [collection[row] for row in range(start, min(start + GROUP_SIZE, len(collection)))]
            words = Words()
            shown = [feature_content(f, texts, words) | _compared(compared.get(f.index), texts) for f in features]
            groups.append(pack({"features": shown, "texts": words.texts}))
            peaks += [_peaks(feature, texts) for feature in features]
        index = {
            "about": _about(collection),
            "comparison": None if comparison is None else _summary(comparison),
            "map": None
            if layout is None
            else _map(layout, dict(zip(collection.features.tolist(), peaks, strict=True))),
            "group_size": GROUP_SIZE,
            "features": {
                "index": collection.features.tolist(),
                "density": rounded(collection.densities.tolist()),
                "maximum": rounded(collection.statistics.maxima.tolist()),
                "peaks": peaks,
                "kinds": [compared[f].kind if f in compared else "" for f in collection.features.tolist()],
            },
        }
        return cls(index, groups)


def pack(content: Any) -> str:
    """JSON, compressed (zlib) and in base64: text that means nothing to HTML and JavaScript."""
    return base64.b64encode(zlib.compress(as_json(content).encode(), 6)).decode()


def unpack(packed: str) -> Any:
    """The reverse of `pack`, as the page does it."""
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def _about(collection: FeatureCollection) -> dict[str, Any]:
    about = asdict(collection.about)
    shown = {name: without_folders(about[name]) for name in ("base_model", "dataset") if about[name]}
    return about | shown | {"left_out_note": collection.left_out_note}


def _summary(comparison: Comparison) -> dict[str, Any]:
    models = {name: model and without_folders(model) for name, model in comparison.models.items()}
    told = (comparison.by_norms, comparison.counts, comparison.by_scaling)
    classes = [[kind, *(counts[kind] for counts in told)] for kind in comparison.counts]
    return {"models": models, "classes": classes}


def _compared(compared: Compared | None, texts: TokenTexts) -> dict[str, Any]:
    if compared is None:
        return {}
    sources = [
        {
            "name": source.name,
            "norm": significant(source.norm),
            "error": significant(source.error),
            "reconstruction": significant(source.reconstruction),
            "promoted": [texts([token])[0] for token, _ in source.promoted],
        }
        for source in compared.sources
    ]
    return {"kind": compared.kind, "sources": sources}


def _map(layout: FeatureMap, peaks: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """Places in thousandths of the map's width and height, and the tokens that tell each group from the others."""
    low = layout.places.amin(0)
    extent = (layout.places.amax(0) - low).clamp(min=1e-12)
    across, up = ((layout.places - low) / extent * 1000).round().int().T.tolist()
    features = layout.features.tolist()
    groups = [0] * len(features) if layout.groups is None else layout.groups.tolist()
    own_peaks = [peaks[feature] for feature in features]
    return {
        "features": features,
        "x": across,
        "y": up,
        "groups": groups,
        "explained": None if layout.explained is None else rounded(layout.explained),
        "components": layout.n_components,
        "words": [] if layout.groups is None else _telling(own_peaks, groups),
    }


def _telling(peaks: Sequence[Sequence[str]], groups: Sequence[int]) -> list[list[str]]:
    """Of each group the tokens that most of its features fire on, and few of the others: share · log(share / all)."""
    overall = Counter(token for tokens in peaks for token in tokens)
    found = []
    for group in range(max(groups) + 1):
        own = [tokens for tokens, at in zip(peaks, groups, strict=True) if at == group]
        counts = Counter(token for tokens in own for token in tokens)
        telling = {
            token: n / len(own) * math.log(n / len(own) / (overall[token] / len(peaks))) for token, n in counts.items()
        }
        found.append(sorted(telling, key=lambda token: (-telling[token], token))[:_WORDS])
    return found


def _peaks(feature: Feature, texts: TokenTexts) -> list[str]:
    """The tokens of the top examples, the most frequent first."""
    tokens = Counter(texts(example.token_ids)[example.peak] for example in feature.top)
    return [text for text, _ in tokens.most_common(_PEAKS)]
