"""Makes the index file and the root card of a repository with many SAEs, from the configs, at each push."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from huggingface_hub import ModelCard

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.evaluation.metrics import METRIC_TITLES
from hfsae.evaluation.saved_set import SET_FILE, SET_PLOT, read_set
from hfsae.hub.card import CARD_FILE, assemble, read_card
from hfsae.hub.kinds import mapping
from hfsae.hub.markdown import render
from hfsae.hub.metadata import LIBRARY, TAGS
from hfsae.hub.repository import Repository, git_blob_id
from hfsae.hub.sae_entries import INDEX_FILE, LISTED, SAEEntry, index_text, read_index, sae_entry
from hfsae.hub.whole_set import WholeSet
from hfsae.identity import weights_sha256
from hfsae.loading import load_config
from hfsae.sae_folders import CONFIG_FILE, folders_among, natural_order
from hfsae.saving import files_at_once, write_json

logger = logging.getLogger(__name__)

# A config takes some ten thousand bytes, an SAE in an index some hundred; what is larger by far is not worth fetching.
_LARGEST_CONFIG = 4 * 2**20
_LARGEST_INDEX = 16 * 2**20


def write_listing(
    place: Path,
    saes: Mapping[str, SparseAutoencoder],
    repository: Repository,
    license: str | None = None,
    language: str | list[str] | None = None,
    together: Mapping[str, Any] | None = None,
) -> None:
    """Adds the index file and the root card to what a push is about to commit, where it concerns many SAEs.

    Args:
        place: The files of the push, the SAEs already among them.
        saes: The SAEs of the push by folder.
        repository: Where they go; the other SAEs there stay listed.
        license: For the root card.
        language: Likewise.
        together: The record of the set that the SAEs are; None keeps the one that is in the repository.
    """
    if set(saes) == {""} and INDEX_FILE not in repository.files:
        return
    listed: dict[str, tuple[SAEEntry, str]] = _others(repository, saes)
    for name, sae in saes.items():
        blob = git_blob_id((place / name / CONFIG_FILE).read_bytes())
        listed[name] = sae_entry(sae.config, name, repository.repo_id, weights_sha256(sae)), blob
    (place / INDEX_FILE).write_text(index_text(listed), encoding="utf-8")
    if together is not None:
        from hfsae.hub.set_plot import set_plot  # matplotlib takes a while to import

        write_json(place / SET_FILE, together)
        set_plot(together, {name: mapping(sae.config.metrics) for name, sae in saes.items()}, place / SET_PLOT)
    elif (recorded := repository.download(SET_FILE)) is not None:
        together = read_set(recorded)
    if "" not in listed:
        published = repository.download(CARD_FILE)
        existing = read_card(published, f"{CARD_FILE} of {repository.repo_id}") if published else None
        entries = [entry for entry, _ in listed.values()]
        card = render_listing(
            entries,
            repo_id=repository.repo_id,
            existing=existing,
            license=license,
            language=language,
            together=None
            if together is None
            else WholeSet.of(together, saes, [entry.name for entry in entries], SET_PLOT),
        )
        (place / CARD_FILE).write_text(str(card), encoding="utf-8", newline="\n")


def write_listing_beside(root: Path, entries: Iterable[SAEEntry]) -> None:
    """Writes the index file and the root card of a folder with many SAEs, as a push of them would.

    Args:
        root: The folder.
        entries: Its SAEs, as `hfsae.hub.list_saes` gives them.
    """
    entries = list(entries)
    listed = {entry.name: (entry, git_blob_id((root / entry.name / CONFIG_FILE).read_bytes())) for entry in entries}
    card = None if "" in listed else listing_of(root, entries)
    with files_at_once(root) as beside:
        (beside / INDEX_FILE).write_text(index_text(listed), encoding="utf-8")
        if card is not None:
            (beside / CARD_FILE).write_text(str(card), encoding="utf-8", newline="\n")


def listing_of(root: Path, entries: Iterable[SAEEntry]) -> ModelCard:
    """The root card of a folder with many SAEs; nothing is written.

    Args:
        root: The folder.
        entries: Its SAEs.
    """
    existing = read_card(root / CARD_FILE) if (root / CARD_FILE).is_file() else None
    together = WholeSet.in_folder(root)
    return render_listing(entries, repo_id=root.resolve().name, existing=existing, together=together)


def _others(repository: Repository, pushed: Iterable[str]) -> dict[str, tuple[SAEEntry, str]]:
    """The SAEs of a repository that a push does not touch, each with the blob id of its config."""
    files = {path: (file.blob_id, file.size) for path, file in repository.files.items()}
    blobs = config_blobs(files)
    blobs = {name: blob for name, blob in blobs.items() if name not in set(pushed)}
    index = repository.download(INDEX_FILE) if is_worth_fetching(files, INDEX_FILE) else None
    entries = {} if index is None else read_index(index, repository.repo_id, blobs)
    for name in blobs.keys() - entries.keys():
        config = repository.download(f"{name}/{CONFIG_FILE}" if name else CONFIG_FILE)
        if config is not None and (entry := entry_from(config.parent, name, repository.repo_id)):
            entries[name] = entry
    return {name: (entry, cast(str, blobs[name])) for name, entry in entries.items()}


def config_blobs(files: Mapping[str, tuple[str | None, int | None]]) -> dict[str, str | None]:
    """The git blob id of every config of reasonable size, by folder, from blob id and size of all files."""
    configs = {name: f"{name}/{CONFIG_FILE}" if name else CONFIG_FILE for name in folders_among(files)}
    return {name: files[path][0] for name, path in configs.items() if is_worth_fetching(files, path)}


def is_worth_fetching(files: Mapping[str, tuple[str | None, int | None]], path: str) -> bool:
    """Whether a config or an index file is there, and of a size that those have."""
    largest = _LARGEST_INDEX if path == INDEX_FILE else _LARGEST_CONFIG
    return path in files and (files[path][1] or 0) <= largest


def entry_from(source: Path | str, name: str, repo_id: str, **hub: Any) -> SAEEntry | None:
    """The entry of one SAE from its own config; None, and a warning, if that is not one of an SAE.

    Args:
        source: Its folder, or with a `subfolder` its repository.
        name: Its name.
        repo_id: The repository's name in the entry.
        **hub: For `hfsae.loading.load_config`.
    """
    try:
        return sae_entry(load_config(source, **hub), name, repo_id)
    except Exception as error:  # transformers raises errors of any kind for what a stranger may write into a config
        reason = " ".join(str(error).split())
        logger.warning("%s of %s is left out: %s", name or "the root", repo_id, reason)
        return None


def render_listing(
    entries: Iterable[SAEEntry],
    *,
    repo_id: str,
    existing: ModelCard | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    together: WholeSet | None = None,
) -> ModelCard:
    """The root card of a repository with many SAEs.

    Args:
        entries: The SAEs.
        repo_id: The repository.
        existing: The card to refresh, whose own text, metadata and licence stay.
        license: A licence id of the Hub.
        language: ISO 639 codes of the text.
        together: What was measured with all SAEs of a set in place.

    Returns:
        The card, with one row for every SAE in natural order of their names.
    """
    rows = sorted(entries, key=lambda entry: natural_order(entry.name))
    data = _front_matter(rows, license, language)
    values = {
        "repo_id": repo_id,
        "rows": [
            {
                "entry": entry,
                "link": quote(f"{entry.name}/{CARD_FILE}"),
                "figures": [None if entry.stale else entry.metrics.get(name) for name in LISTED],
            }
            for entry in rows
        ],
        "titles": [METRIC_TITLES[name] for name in LISTED],
        "base_models": sorted({entry.base_model for entry in rows if entry.base_model}),
        "datasets": sorted({entry.dataset for entry in rows if entry.dataset}),
        "tokens": sorted({entry.n_tokens for entry in rows if entry.n_tokens}),
        "stale": any(entry.stale for entry in rows),
        "index_file": INDEX_FILE,
        "together": together,
        "set_file": SET_FILE,
    }
    return assemble(data, render("listing_card.md.jinja", values), existing)


def _front_matter(entries: list[SAEEntry], license: str | None, language: str | list[str] | None) -> dict[str, Any]:
    """The metadata by which the repository is found for each of its SAEs."""
    base_models = sorted({entry.base_model for entry in entries if entry.base_model})
    data = {
        "base_model": base_models,
        "datasets": sorted({entry.dataset for entry in entries if entry.dataset}),
        "language": language,
        "library_name": LIBRARY,
        "license": license,
        "pipeline_tag": "feature-extraction",
        "tags": list(dict.fromkeys([*TAGS, *(tag for entry in entries for tag in entry.tags)])),
        "base_model_relation": "adapter" if base_models else None,
    }
    return {key: value for key, value in data.items() if value}
