"""What a card says of the labels beside it: how many there are, who wrote them, and how well they foretell."""

from pathlib import Path
from statistics import fmean
from typing import Any

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.hub.hub_ids import without_folders
from hfsae.identity import Identity
from hfsae.label_file import LABELS_FILE, SCORES, SIMULATION, Label, labels_beside


def label_summary(folder: Path | None, sae: SparseAutoencoder | None) -> dict[str, Any] | None:
    """What the template prints; None where there are no labels of this SAE.

    Args:
        folder: Where the SAE lies.
        sae: The SAE that the labels must be of.
    """
    if folder is None or sae is None or not (folder / LABELS_FILE).is_file():
        return None
    labels = labels_beside(folder, *Identity.of(sae))
    if not labels:
        return None
    models = sorted({label.model for label in labels.values() if label.model is not None})
    by_model = [_of_model(model, [one for one in labels.values() if one.model == model]) for model in models]
    return {"n": len(labels), "by_people": sum(one.model is None for one in labels.values()), "by_model": by_model}


def _of_model(model: str, labels: list[Label]) -> dict[str, Any]:
    by_score = {name: [one.scores[name].accuracy for one in labels if name in one.scores] for name in SCORES}
    means = {name: fmean(found) for name, found in by_score.items() if found}
    simulation = means.pop(SIMULATION, None)
    scores = [(SCORES[name], mean) for name, mean in means.items()]
    return {"model": without_folders(model), "n": len(labels), "scores": scores, "simulation": simulation}
