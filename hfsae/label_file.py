"""`labels.json`: what features are called, by people or by a language model. It says which SAE it means.

    {"format": 1, "weights_sha256": "...", "settings": {"k": 32, ...}, "labels": {"17": "inside a docstring"},
     "explained": {"17": {"model": "...", "prompts": "...", "scores": {"detection_random": {"accuracy": 0.8, ...}}}}}

`explained` tells of the labels that a language model wrote. A label that a person changed has no entry there.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

from hfsae.identity import Identity
from hfsae.saving import write_json

logger = logging.getLogger(__name__)

LABELS_FILE = "labels.json"
_FORMAT = 1
_KINDS = ("detection", "fuzzing")

SIMULATION = "simulation"
SCORES = {
    f"{kind}_{against}": f"{kind} against {against} text" for kind in _KINDS for against in ("random", "neighbouring")
} | {SIMULATION: "simulation, a correlation"}
"""The scores that a label may have, and what they are called."""

GUESS = {name: 0.0 if name == SIMULATION else 0.5 for name in SCORES}
"""What a guess has of each score."""


@dataclass(frozen=True)
class Score:
    """How well a label foretells where its feature fires.

    Attributes:
        accuracy: Balanced accuracy, (true positive rate + true negative rate) / 2; 0.5 is a guess. Of a simulation the
            correlation of foretold and true activations; 0 is a guess.
        low: Lower end of its 95 % interval.
        high: Upper end.
        positives: Examples on which the feature fires and an answer was given.
        negatives: Examples on which it does not fire and an answer was given.
        unanswered: Examples of which the model gave no answer that could be read.
    """

    accuracy: float
    low: float
    high: float
    positives: int
    negatives: int
    unanswered: int = 0

    def __str__(self) -> str:
        return f"{self.accuracy:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Label:
    """What a feature is called, and who says so.

    Attributes:
        text: The label.
        model: The language model that wrote it; None for a person.
        prompts: Digest of the prompts that it was asked with.
        scores: By the names of `SCORES`.
    """

    text: str
    model: str | None = None
    prompts: str | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)


def read_labels(
    path: str | Path, weights_sha256: str | None = None, settings: Mapping[str, Any] | None = None
) -> dict[int, str]:
    """Reads the texts of labels that `write_labels` or the dashboard wrote.

    Args:
        path: The file.
        weights_sha256: The digest of the SAE's weights, to make sure that these are meant; None reads any labels.
        settings: The SAE's settings (`collection.about.settings`), to make sure of them too.

    Returns:
        Labels by feature, in the order of features.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, or labels of other weights or settings.
    """
    return {feature: label.text for feature, label in read_label_records(path, weights_sha256, settings).items()}


def read_label_records(
    path: str | Path, weights_sha256: str | None = None, settings: Mapping[str, Any] | None = None
) -> dict[int, Label]:
    """Reads labels with what is known of them; arguments and errors are those of `read_labels`."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"{path} is in format {content['format']}; this version knows {_FORMAT}.")
        kept = {"weights_sha256": content["weights_sha256"], "settings": content.get("settings")}
        labels = {int(feature): label for feature, label in content["labels"].items()}
        explained = {int(feature): dict(record) for feature, record in content.get("explained", {}).items()}
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} does not hold labels; expected {{"format": {_FORMAT}, "weights_sha256": "...", '
            '"labels": {"17": "inside a docstring"}}, as the dashboard saves it.'
        ) from error
    wrong = [feature for feature, label in labels.items() if feature < 0 or not isinstance(label, str)]
    if wrong:
        raise ValueError(f"{path}: feature {wrong[0]} has the label {labels[wrong[0]]!r}; expected a text.")
    unlike = None if weights_sha256 is None else Identity(weights_sha256, settings).unlike(kept)
    if unlike is not None:
        raise ValueError(
            f"{path} has labels of {unlike}: features with the same number mean something else. Move the file away to "
            "begin again."
        )
    return {feature: _record(path, feature, labels[feature], explained.get(feature, {})) for feature in sorted(labels)}


def labels_beside(
    folder: str | Path, weights_sha256: str, settings: Mapping[str, Any] | None = None
) -> dict[int, Label]:
    """The labels of an SAE that lie beside its weights; none where there is no file, or one that is not theirs.

    A file that is there and is left out is told in a warning.

    Args:
        folder: The SAE's folder.
        weights_sha256: The digest of its weights.
        settings: Its settings, where they count too.
    """
    try:
        return read_label_records(Path(folder) / LABELS_FILE, weights_sha256, settings)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("labels are left out: %s", error)
        return {}


def write_labels(
    path: str | Path,
    labels: Mapping[int, str | Label],
    weights_sha256: str,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes labels; the file appears whole.

    Args:
        path: The file, `labels.json` beside the weights.
        labels: Labels by feature; empty ones are left out.
        weights_sha256: The digest of the SAE's weights (`collection.about.weights_sha256`).
        settings: The SAE's settings (`collection.about.settings`), so that labels are refused where they have changed.

    Raises:
        ValueError: If a feature or a label is none, which `read_labels` would refuse; the file is then as it was.
    """
    for feature, label in labels.items():
        text = label.text if isinstance(label, Label) else label
        if isinstance(feature, bool) or not isinstance(feature, Integral) or feature < 0 or not isinstance(text, str):
            raise ValueError(f"feature {feature!r} has the label {text!r}: expected a number from 0 on, and a text.")
    records = {
        feature: label if isinstance(label, Label) else Label(label) for feature, label in sorted(labels.items())
    }
    named = {str(feature): label.text for feature, label in records.items() if label.text}
    explained = {str(feature): explanation_of(label) for feature, label in records.items() if label.text}
    explained = {feature: record for feature, record in explained.items() if record}
    content = {"format": _FORMAT, **Identity(weights_sha256, settings).record(), "labels": named}
    write_json(Path(path), content | ({"explained": explained} if explained else {}))


def explanation_of(label: Label) -> dict[str, Any]:
    """What `explained` holds of a label: nothing where a person wrote it."""
    if label.model is None:
        return {}
    scores = {name: asdict(score) for name, score in label.scores.items()}
    return {"model": label.model, "prompts": label.prompts, "scores": scores}


def _record(path: Path, feature: int, text: str, record: Mapping[str, Any]) -> Label:
    """A label of what its file says of it."""
    if not record:
        return Label(text)
    try:
        model, prompts = record["model"], record.get("prompts")
        scores = {name: Score(**score) for name, score in record.get("scores", {}).items() if name in SCORES}
        numbers = [float(number) for score in scores.values() for number in asdict(score).values()]
        if not isinstance(model, str) or not isinstance(prompts, str | None) or not all(map(math.isfinite, numbers)):
            raise ValueError("a value of another kind")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}: what is said of feature {feature}'s label cannot be read ({error}); expected a model and scores."
        ) from error
    return Label(text, model, prompts, scores)
