"""Features for circuit-tracer's pages, which show beside a graph where each of its features fires."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfsae.analysis.collection import FeatureCollection
from hfsae.analysis.feature_types import Example, Feature
from hfsae.analysis.token_text import TokenTexts
from hfsae.saving import files_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BANDS = 5


def export_circuit_tracer(
    collections: Mapping[int, FeatureCollection] | FeatureCollection,
    tokenizer: "PreTrainedTokenizerBase",
    folder: str | Path,
    *,
    features_per_layer: int | None = None,
) -> Path:
    """Writes what is known of features as circuit-tracer 0.5.0's pages read it: a JSON file for each feature.

    A file is called by the number that nodes of graphs have: `(l + i)(l + i + 1)/2 + i` for layer l and feature i.
    The pages ask for `{scan}/NUMBER.json`, where a scan that begins with `./data/` lies in the served folder.

    Args:
        collections: What `collect_features` found of transcoders, by layer; or of a cross-layer transcoder.
        tokenizer: The language model's tokenizer.
        folder: Where to; made if missing.
        features_per_layer: Of the cross-layer transcoder; None for transcoders.

    Returns:
        The folder.

    Raises:
        ValueError: If there is one collection and no `features_per_layer`, or several and it is given.

    Example:
        >>> export_circuit_tracer({0: first, 1: second}, tokenizer, "set/features")  # doctest: +SKIP
        PosixPath('set/features')
    """
    if isinstance(collections, FeatureCollection) != (features_per_layer is not None):
        raise ValueError("features_per_layer is of the one collection of a cross-layer transcoder, and of no other.")
    by_layer = {0: collections} if isinstance(collections, FeatureCollection) else collections
    texts = TokenTexts(tokenizer)
    with files_at_once(Path(folder)) as beside:
        for layer, collection in by_layer.items():
            for feature in collection:
                own, index = (
                    divmod(feature.index, features_per_layer) if features_per_layer else (layer, feature.index)
                )
                page = _page(own, index, feature, texts)
                (beside / f"{_number(own, index)}.json").write_text(json.dumps(page))
    return Path(folder)


def _number(layer: int, feature: int) -> int:
    """One number for a layer and a feature (Cantor's pairing), as nodes of graphs have it."""
    both = layer + feature
    return both * (both + 1) // 2 + feature


def _page(layer: int, index: int, feature: Feature, texts: TokenTexts) -> dict[str, Any]:
    """The fields of `circuit_tracer/frontend/feature_models.py`; values at the quantiles are of the sample."""
    bands = {f"Sample {band + 1} of {_BANDS}": examples for band, examples in enumerate(feature.quantiles(_BANDS))}
    quantiles = {"Top activations": feature.top, **bands}
    strengths = sorted(example.activation for example in feature.sample)
    return {
        "transcoder_id": str(layer),
        "index": index,
        "examples_quantiles": [
            {"quantile_name": name, "examples": [_example(example, texts) for example in examples]}
            for name, examples in quantiles.items()
            if examples
        ],
        "top_logits": [texts([effect.token_id])[0] for effect in feature.promoted],
        "bottom_logits": [texts([effect.token_id])[0] for effect in feature.suppressed],
        "act_min": 0.0,
        "act_max": feature.maximum,
        "quantile_values": [strengths[round(q * (len(strengths) - 1) / _BANDS)] for q in range(_BANDS + 1)]
        if strengths
        else [],
        "histogram": [float(count) for count in feature.histogram],
        "activation_frequency": feature.density,
    }


def _example(example: Example, texts: TokenTexts) -> dict[str, Any]:
    return {
        "tokens": texts(example.token_ids),
        "tokens_acts_list": [round(value, 4) for value in example.activations],
        "train_token_ind": example.peak,
        "is_repeated_datapoint": False,
    }
