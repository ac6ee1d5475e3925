"""`scores.json`, what `hfsae score --write` measured, and what a card says of it.

{"format": 1, "weights_sha256": "...", "headline": {"absorption of concepts": {"value": 0.1, "low": ..., ...}},
 "scores": {...}}
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.evaluation.protocol import weights_sha256
from hfsae.hub.kinds import mapping, number
from hfsae.saving import write_json

logger = logging.getLogger(__name__)

SCORES_FILE = "scores.json"
_FORMAT = 1


def write_scores(folder: Path, headline: Mapping[str, Any], scores: Mapping[str, Any], weights_sha256: str) -> None:
    """Writes scores beside the weights that they are of.

    Args:
        folder: The SAE's folder.
        headline: By title `value`, `low` and `high`.
        scores: All figures, in values that JSON can hold.
        weights_sha256: The digest of the weights.
    """
    content = {"format": _FORMAT, "weights_sha256": weights_sha256, "headline": headline, "scores": scores}
    write_json(folder / SCORES_FILE, content)


def score_summary(folder: Path | None, sae: SparseAutoencoder | None) -> list[tuple[str, float, float, float]] | None:
    """Titles, values and ends of intervals; None where there are no scores of these weights.

    A file that is there and is left out is told in a warning.

    Args:
        folder: Where the SAE lies.
        sae: The SAE, whose weights the scores must be of.
    """
    if folder is None or sae is None or not (folder / SCORES_FILE).is_file():
        return None
    try:
        content = mapping(json.loads((folder / SCORES_FILE).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        logger.warning("scores are left out: %s holds no JSON: %s", folder / SCORES_FILE, error)
        return None
    if content.get("format") != _FORMAT or content.get("weights_sha256") != weights_sha256(sae):
        logger.warning(
            "scores are left out: %s is of other weights, or of another version: run `hfsae score --write` once more.",
            folder / SCORES_FILE,
        )
        return None
    rows = []
    for title, figures in mapping(content.get("headline")).items():
        value, low, high = (number(mapping(figures).get(name)) for name in ("value", "low", "high"))
        if value is not None and low is not None and high is not None:
            rows.append((title, value, low, high))
    return rows or None
