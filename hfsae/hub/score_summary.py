"""`scores.json`, what `hfsae score --write` measured, and what a card says of it.

{"format": 1, "weights_sha256": "...", "settings": {"k": 32, ...},
 "headline": {"absorption of concepts": {"value": 0.1, "low": ..., ...}},
 "scores": {...}, "stability": {"seed 1": {"value": 0.1, "low": ..., "high": ..., "weights_sha256": "..."}}}

Where runs of several seeds were scored, a headline also has `deviation`, that of one run, and the number of `seeds`.
The digest of a stability is that of the other run's weights.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.hub.kinds import mapping, number
from hfsae.identity import Identity
from hfsae.saving import write_json

logger = logging.getLogger(__name__)

SCORES_FILE = "scores.json"
_FORMAT = 1


class ScoreRow(NamedTuple):
    """A score on a card.

    Args:
        title: What was scored.
        value: The score.
        low: Lower end of its interval.
        high: Upper end.
        deviation: The standard deviation over seeds, where it was measured.
        seeds: Over how many.
    """

    title: str
    value: float
    low: float
    high: float
    deviation: float | None = None
    seeds: int | None = None


def write_scores(
    folder: Path, headline: Mapping[str, Any], scores: Mapping[str, Any], identity: Identity
) -> list[str]:
    """Writes scores beside the SAE that they are of; a stability of this SAE stays.

    What seeds differ by stays where this SAE has the same score as before. It goes where they have another one,
    since text or settings are others then.

    Args:
        folder: The SAE's folder.
        headline: By title `value`, `low` and `high`, and maybe `deviation` and `seeds`.
        scores: All figures, in values that JSON can hold.
        identity: Which SAE they are of.

    Returns:
        The titles whose deviation over seeds went.
    """
    before = _of_this_sae(folder, identity)
    kept, gone = {title: dict(figures) for title, figures in headline.items()}, []
    for title, figures in mapping(before.get("headline")).items():
        noise = {name: mapping(figures)[name] for name in ("deviation", "seeds") if name in mapping(figures)}
        now = kept.get(title, {})
        if noise and now.get("value") == mapping(figures).get("value"):
            kept[title] = {**noise, **now}
        elif noise and "deviation" not in now:
            gone.append(title)
    content = {"format": _FORMAT, **identity.record(), "headline": kept, "scores": scores}
    if stability := before.get("stability"):
        content["stability"] = stability
    write_json(folder / SCORES_FILE, content)
    return gone


def write_stability(
    folder: Path, against: str, its_sha256: str, figures: Mapping[str, Any], identity: Identity
) -> None:
    """Adds how many features another run has found again; scores of this SAE stay.

    Each other run has one entry, whatever it is called. Of two with one name the later one has its digest in the name.

    Args:
        folder: The SAE's folder.
        against: What the other run is called.
        its_sha256: The digest of its weights.
        figures: `value`, `low` and `high`.
        identity: Which SAE the folder holds.
    """
    content: dict[str, Any] = {"format": _FORMAT, **identity.record(), "headline": {}, "scores": {}}
    content |= _of_this_sae(folder, identity)
    others = {
        name: one
        for name, one in mapping(content.get("stability")).items()
        if mapping(one).get("weights_sha256") != its_sha256
    }
    if mapping(others.get(against)).get("weights_sha256"):
        against = f"{against}, weights {its_sha256[:8]}"
    content["stability"] = {**others, against: {**figures, "weights_sha256": its_sha256}}
    write_json(folder / SCORES_FILE, content)


def _of_this_sae(folder: Path, identity: Identity) -> dict[str, Any]:
    """What is there of this SAE; what is of others, or cannot be read, is about to be replaced."""
    try:
        content = mapping(json.loads((folder / SCORES_FILE).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return {}
    same = content.get("format") == _FORMAT and identity.unlike(content) is None
    return dict(content) if same else {}


def score_summary(folder: Path | None, sae: SparseAutoencoder | None) -> list[ScoreRow] | None:
    """The scores with their intervals; None where there are no scores of this SAE.

    A file that is there and is left out is told in a warning.

    Args:
        folder: Where the SAE lies.
        sae: The SAE that the scores must be of.
    """
    if folder is None or sae is None or not (folder / SCORES_FILE).is_file():
        return None
    try:
        content = mapping(json.loads((folder / SCORES_FILE).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        logger.warning("scores are left out: %s holds no JSON: %s", folder / SCORES_FILE, error)
        return None
    unlike = Identity.of(sae).unlike(content) if content.get("format") == _FORMAT else "another version"
    if unlike is not None:
        logger.warning(
            "scores are left out: %s is of %s: run `hfsae score --write` once more.", folder / SCORES_FILE, unlike
        )
        return None
    rows = []
    stability = mapping(content.get("stability")).items()
    titled = {f"stability, against {against}": figures for against, figures in stability}
    for title, figures in {**mapping(content.get("headline")), **titled}.items():
        names = ("value", "low", "high", "deviation", "seeds")
        value, low, high, deviation, seeds = (number(mapping(figures).get(name)) for name in names)
        if value is not None and low is not None and high is not None:
            noise = (None, None) if deviation is None or seeds is None else (deviation, int(seeds))
            rows.append(ScoreRow(title, value, low, high, *noise))
    return rows or None
