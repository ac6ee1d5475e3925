"""`labels.json`: what people call features. It lies beside the weights and says which weights it means."""

import json
from collections.abc import Mapping
from pathlib import Path

from hfsae.saving import write_json

_FORMAT = 1


def read_labels(path: str | Path, weights_sha256: str | None = None) -> dict[int, str]:
    """Reads labels that `write_labels` or the dashboard wrote.

    Args:
        path: The file.
        weights_sha256: The digest of the SAE's weights, to make sure that these are meant; None reads any labels.

    Returns:
        Labels by feature, in the order of features.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, or labels of other weights.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"{path} is in format {content['format']}; this version knows {_FORMAT}.")
        stored: str = content["weights_sha256"]
        labels = {int(feature): label for feature, label in content["labels"].items()}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} does not hold labels; expected {{"format": {_FORMAT}, "weights_sha256": "...", '
            '"labels": {"17": "inside a docstring"}}, as the dashboard saves it.'
        ) from error
    wrong = [feature for feature, label in labels.items() if feature < 0 or not isinstance(label, str)]
    if wrong:
        raise ValueError(f"{path}: feature {wrong[0]} has the label {labels[wrong[0]]!r}; expected a text.")
    if weights_sha256 not in (None, stored):
        raise ValueError(
            f"{path} has labels of other weights (SHA-256 {str(stored)[:12]}) than these ({weights_sha256[:12]}): "
            "features with the same number mean something else. Move the file away to begin anew."
        )
    return dict(sorted(labels.items()))


def write_labels(path: str | Path, labels: Mapping[int, str], weights_sha256: str) -> None:
    """Writes labels; the file appears whole.

    Args:
        path: The file, `labels.json` beside the weights.
        labels: Labels by feature; empty ones are left out.
        weights_sha256: The digest of the SAE's weights (`collection.about.weights_sha256`).
    """
    named = {str(feature): label for feature, label in sorted(labels.items()) if label}
    write_json(Path(path), {"format": _FORMAT, "weights_sha256": weights_sha256, "labels": named})
