"""The record of a folder of SAEs that were made to stand in a model together.

The record is one file beside the folders of the SAEs, with what `evaluate_together` measured. It names the SAEs of the
set and the digests of their weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.evaluation.protocol import changed_settings
from hfsae.identity import weights_sha256

SET_FILE, SET_PLOT = "set.json", "set.png"


def read_set(path: Path) -> dict[str, Any] | None:
    """The record of a set; None where there is no such file.

    Args:
        path: The file, which somebody else may have written.

    Raises:
        ValueError: If it is no record of a set; says what it lacks.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        digests = record["protocol"]["weights_sha256"]
        fits = isinstance(digests, dict) and bool(digests) and all(type(value) is str for value in digests.values())
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is no record of a set of SAEs ({type(error).__name__}: {error}).") from error
    if not fits:
        raise ValueError(f"{path} is no record of a set of SAEs: its protocol has no digest of the weights of each.")
    return record


def set_names(record: Mapping[str, Any]) -> list[str]:
    """The SAEs of a set, by the names of their folders."""
    return list(record["protocol"]["weights_sha256"])


def is_stale(record: Mapping[str, Any], saes: Mapping[str, SparseAutoencoder]) -> bool:
    """Whether any SAE of a set is not as it was measured; one that is not given counts as it was."""
    digests, settings = record["protocol"]["weights_sha256"], record["protocol"].get("settings")
    given = {name: sae for name, sae in saes.items() if name in digests}
    if any(weights_sha256(sae) != digests[name] for name, sae in given.items()):
        return True
    known = settings if isinstance(settings, Mapping) else {}
    return any(changed_settings(sae.config, known.get(name, {})) for name, sae in given.items())
