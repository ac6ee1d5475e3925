"""The features of other saved SAEs that are the same as those of one SAE, with where their pages stand."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hfsae.autoencoder import SparseAutoencoder
from hfsae.dashboard.page_contents import Matches
from hfsae.hub.card import DASHBOARD_FILE, is_dashboard_of
from hfsae.hub.sections import display_name
from hfsae.modeling import SAE
from hfsae.sae_folders import place_of
from hfsae.saved.kept_features import local_folder
from hfsae.scores.matching import match_features


class Other(NamedTuple):
    """Another saved SAE: where it was named, and itself."""

    source: str
    sae: SAE


def load_others(sources: Sequence[str]) -> list[Other]:
    """Loads the SAEs that features are matched with.

    Args:
        sources: Their folders, or Hub repositories (`org/name/subfolder@revision`).

    Raises:
        OSError: If one is not there.
    """
    placed = {source: place_of(source) for source in sources}
    return [Other(source, SAE.from_pretrained(place, **where)) for source, (place, where) in placed.items()]


def matches_with(sae: SparseAutoencoder, others: Sequence[Other]) -> list[Matches]:
    """Pairs the features of an SAE with those of others, as `hfsae match` does.

    Args:
        sae: The SAE whose features the page shows.
        others: The others, of the same place.

    Returns:
        The pairs of each, with its dashboard where that lies beside its weights and is of them.

    Raises:
        ValueError: If two cannot be matched (`match_features`).
        ImportError: If scipy is not installed.
    """
    found = []
    for source, other in others:
        paired = match_features(sae, other, n_draws=1)
        folder = local_folder(source)
        page = None if folder is None else folder / DASHBOARD_FILE
        shown = page if page is not None and page.is_file() and is_dashboard_of(page, other) else None
        pairs = zip(paired.first.tolist(), paired.second.tolist(), paired.cosines.tolist(), strict=True)
        named = display_name(other.config, None, None)
        name = f"{Path(source).name} ({named})" if Path(source).name not in ("", named) else named
        found.append(Matches(name, shown, {first: (second, cosine) for first, second, cosine in pairs}, paired.chance))
    return found
