"""Stability on the card: what `hfsae match --write` leaves beside the weights."""

from pathlib import Path

from hfsae.autoencoder import SparseAutoencoder
from hfsae.folders import can_be_written_in
from hfsae.hub.card import write_card
from hfsae.hub.score_summary import SCORES_FILE, write_stability
from hfsae.identity import Identity, weights_sha256
from hfsae.scores.matching import Matching, one_start, run_name, starts_are_known, two_places
from hfsae.scores.recipe import two_recipes


def can_stand_on_card(source: str, a: SparseAutoencoder, b: SparseAutoencoder) -> None:
    """Refuses pairs that do not tell of stability, before they are matched.

    Args:
        source: The folder of the first SAE.
        a: The SAE whose card it is.
        b: The other one.

    Raises:
        ValueError: If the first is in no folder here, the two have one start, two places or two recipes, or a start
            is not known.
        PermissionError: If nothing can be written in the folder.
    """
    if not Path(source).is_dir():
        raise ValueError(f"stability is written beside the weights of A, and {source} is no folder here.")
    can_be_written_in(source)
    objection = two_places(a.config, b.config) or one_start(a, b) or two_recipes(a.config, b.config)
    if objection is None and not starts_are_known(a, b):
        objection = "what they started from is not recorded"
    if objection is not None:
        raise ValueError(f"a card tells of stability, and these two do not: {objection}. Leave --write out.")


def put_on_card(source: str, sae: SparseAutoencoder, other: str, its: SparseAutoencoder, found: Matching) -> Path:
    """Writes a stability into `scores.json`, and the card again.

    Args:
        source: The folder of an SAE.
        sae: The SAE.
        other: The folder or repository of the other one.
        its: The other one.
        found: What matching them gave.

    Returns:
        The path of `scores.json`.
    """
    figures = vars(found.stability)
    write_stability(Path(source), run_name(other, its), weights_sha256(its), figures, Identity.of(sae))
    write_card(Path(source))
    return Path(source) / SCORES_FILE
