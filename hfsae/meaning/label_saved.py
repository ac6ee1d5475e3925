"""Labels of a saved SAE: written into `labels.json` as they come, gone on with after an interruption."""

import logging
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hfsae.folders import can_be_file
from hfsae.label_file import LABELS_FILE, SIMULATION, Label, read_label_records, write_labels
from hfsae.meaning.chat import Chat
from hfsae.meaning.labelling import Cost, Labelled, label_features, refuse_impossible
from hfsae.saved.kept_features import SavedFeatures

logger = logging.getLogger(__name__)

JOURNAL_FILE = "labels.answers.jsonl"
# Seconds between two writings of the file.
_INTERVAL = 20.0


class OnlyTheCost(Exception):  # noqa: N818  no error: it ends a run that was to tell its cost
    """The cost was told, and nothing was asked."""


def label_saved(
    opened: SavedFeatures,
    chat: Chat,
    *,
    features: Sequence[int] | None = None,
    max_features: int | None = None,
    output: str | Path | None = None,
    write: bool = False,
    tell: Callable[[str], None] = logger.info,
    cost_alone: bool = False,
    seed: int = 0,
    **options: Any,
) -> Labelled:
    """Labels the features of a saved SAE that have no label yet.

    Every few seconds what is known is put into the file, whose other labels stay. Answers lie in
    `labels.answers.jsonl` beside it until all features are done.

    Args:
        opened: The SAE and its features.
        chat: The model that explains and judges.
        features: Which ones; None for all that fire.
        max_features: So many of them at most, drawn at random.
        output: The file; None: `labels.json` beside the weights, or here where these are on the Hub.
        write: Whether labels that are there already are replaced; those of people too.
        tell: Is told what goes on, in sentences.
        cost_alone: Whether nothing is asked, once the cost was told.
        seed: Of what is drawn.
        **options: For `label_features`.

    Returns:
        What came out in this run.

    Raises:
        ValueError, OSError: As `label_features`; ValueError too if the file holds labels of other weights or settings.
    """
    numbers = ("n_shown", "n_scored", "shown_at_once", "n_simulated")
    refuse_impossible(**{name: options[name] for name in numbers if name in options})
    if max_features is not None and max_features < 1:
        raise ValueError(f"max_features is {max_features}: expected 1 or more.")
    path = Path(output) if output is not None else (opened.folder or Path()) / LABELS_FILE
    can_be_file(path)
    known = read_label_records(path, *opened.identity) if path.is_file() else {}
    asked = _asked(opened, features, max_features, seed)
    wanted = [feature for feature in asked if write or feature not in known]
    if len(wanted) < len(asked):
        passed = [known[feature] for feature in asked if feature in known]
        tell(_passed_over(passed, len(asked), simulated=bool(options.get("n_simulated"))))
    if not wanted:
        return Labelled()
    made: dict[int, Label] = {}
    written = time.monotonic()

    def keep() -> None:
        # Somebody may have saved labels of the dashboard in the meantime: those of people stay.
        others = read_label_records(path, *opened.identity) if path.is_file() else {}
        stay = {} if write else {feature: label for feature, label in others.items() if label.model is None}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_labels(path, {**others, **made, **stay}, *opened.identity)

    def each(feature: int, label: Label | None) -> None:
        nonlocal written
        tell(f"feature {feature}: {_said(label)}")
        if label is not None:
            made[feature] = label
        if made and time.monotonic() - written > _INTERVAL:
            keep()
            written = time.monotonic()

    def before(cost: Cost) -> None:
        tell(f"{chat.name}: {cost}")
        if cost_alone:
            raise OnlyTheCost

    source = opened.text
    try:
        return label_features(
            opened.sae,
            opened.model,
            opened.tokenizer,
            source.documents(),
            chat,
            collection=opened.collection,
            features=wanted,
            journal=path.with_name(JOURNAL_FILE),
            text_column=source.text_column,
            before=before,
            after_each=each,
            seed=seed,
            disable_tqdm=opened.disable_tqdm,
            **options,
        )
    except OnlyTheCost:
        return Labelled()
    finally:
        if made:
            keep()


def _asked(opened: SavedFeatures, features: Sequence[int] | None, at_most: int | None, seed: int) -> list[int]:
    """Features to label; those with a label are among them, so that a run that goes on has the same."""
    collection = opened.collection
    if features is None:
        firing = collection.statistics.tokens_firing[collection.features] > 0
        features = collection.features[firing].tolist()
    if at_most is not None and at_most < len(features):
        features = sorted(random.Random(seed).sample(list(features), at_most))
    return list(features)


def _passed_over(labels: Sequence[Label], n_asked: int, *, simulated: bool) -> str:
    """Says that features keep the labels they have."""
    without = sum(SIMULATION not in label.scores for label in labels) if simulated else 0
    scores = f", {without:,} of them without a simulation score" if without else ""
    whole = "all" if len(labels) == n_asked else f"{len(labels):,} of {n_asked:,}"
    return f"{whole} of these features have a label{scores}: --write has them written again"


def _said(label: Label | None) -> str:
    if label is None:
        return "no explanation"
    scores = ", ".join(f"{name} {score}" for name, score in label.scores.items())
    return f"{label.text!r}" + (f"; {scores}" if scores else "")
