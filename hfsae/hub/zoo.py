"""Repositories with one or many SAEs: pushing to them, listing them, loading from them, finding them."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, hf_hub_download

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.configuration import places_in
from hfsae.connection import reachable
from hfsae.evaluation.saved_set import set_names
from hfsae.hub.errors import explained, usable_token
from hfsae.hub.listing import config_blobs, entry_from, is_worth_fetching
from hfsae.hub.metadata import LIBRARY, place_tags
from hfsae.hub.push import CardFields, Saved, publish
from hfsae.hub.repository import Destination
from hfsae.hub.sae_entries import INDEX_FILE, SAEEntry, read_index, zoo_name
from hfsae.hub.snapshot import look
from hfsae.loading import load_sae
from hfsae.progress import quietly
from hfsae.sae_folders import natural_order, sae_folders

logger = logging.getLogger(__name__)

_MOST_REPOSITORIES = 100


def push_sae(
    sae: SparseAutoencoder,
    repo_id: str,
    *,
    folder: str | os.PathLike | None = None,
    subfolder: str | None = None,
    license: str | None = None,
    language: str | list[str] | None = None,
    **destination: Any,
) -> CommitInfo:
    """Publishes one SAE; see `SAE.push_to_hub`, whose arguments these are."""
    saved = Saved(sae, None if folder is None else Path(folder))
    name = (subfolder or "").strip("/")
    return publish({name: saved}, Destination(repo_id, **destination), card=CardFields(license, language))


def push_saes(
    saes: Mapping[str, SparseAutoencoder | str | os.PathLike] | Sequence[SparseAutoencoder | str | os.PathLike],
    repo_id: str,
    *,
    license: str | None = None,
    language: str | list[str] | None = None,
    collection: str | None = None,
    together: Mapping[str, Any] | None = None,
    **destination: Any,
) -> CommitInfo:
    """Publishes many SAEs in one atomic commit, each in a folder with its card, and a root card that lists them.

    SAEs that are in the repository already stay, and stay listed.

    Args:
        saes: SAEs, or folders that training saved them in, whose logs go along. By name: the folder each shall have
            in the repository. Without names each is called `{place}/{architecture}-{n_features}-{k or L0}`.
        repo_id: `"org/gpt2-saes"`.
        license: For the cards, such as `"apache-2.0"`; without it one that stands there already stays.
        language: ISO 639 codes of the text, such as `"en"`; likewise.
        collection: Title of a collection on the Hub that the repository is added to; made when missing.
        together: What `evaluate_together` measured of them, by the same names; the root card then shows it.
        **destination: As for `SAE.push_to_hub`.

    Returns:
        What `huggingface_hub` says of the commit.

    Raises:
        ValueError: If there is none, `together` is of other SAEs, or two have the same name. Likewise if a name cannot
            be a folder, or a card cannot be read.
        PushError: If the Hub refuses or cannot be reached: what to do, in one sentence.

    Example:
        >>> push_saes({"resid_post.8/topk-12288-32": sae}, "org/gpt2-saes")  # doctest: +SKIP
    """
    named = dict(saes) if isinstance(saes, Mapping) else _named(saes)
    if not named:
        raise ValueError("there is no SAE to push.")
    loaded = {name.strip("/"): _saved(item) for name, item in named.items()}
    if together is not None and (missing := set(set_names(together)) ^ set(loaded)):
        raise ValueError(f"together is of other SAEs than the pushed ones: {', '.join(sorted(missing))}.")
    to = Destination(repo_id, **destination)
    info = publish(loaded, to, card=CardFields(license, language), together=together)
    if collection is not None:
        add_to_collection(info.repo_url.repo_id, collection, token=to.token)
    return info


def _named(saes: Sequence[SparseAutoencoder | str | os.PathLike]) -> dict[str, SparseAutoencoder | str | os.PathLike]:
    named: dict[str, SparseAutoencoder | str | os.PathLike] = {}
    for item in saes:
        name = zoo_name(_saved(item).sae.config)
        if name in named:
            raise ValueError(f"two SAEs would be called {name!r}: pass a dictionary that names them.")
        named[name] = item
    return named


def _saved(item: SparseAutoencoder | str | os.PathLike) -> Saved:
    if isinstance(item, SparseAutoencoder):
        return Saved(item)
    with quietly():
        return Saved(load_sae(item), Path(item))


def add_to_collection(repo_id: str, title: str, *, token: str | bool | None = None) -> str:
    """Puts a repository on a collection of its namespace; a collection of that title is made when missing.

    Returns:
        The collection's slug, which its address ends in.

    Raises:
        PushError: If the Hub refuses.
    """
    api = HfApi(token=usable_token(token), library_name=LIBRARY)
    with explained(repo_id):
        collection = api.create_collection(title, namespace=repo_id.split("/")[0], exists_ok=True)
        api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True)
    return collection.slug


def list_saes(
    source: str | os.PathLike, *, revision: str | None = None, token: str | bool | None = None
) -> list[SAEEntry]:
    """What SAEs a repository or a folder holds, and how good they are; no weights are fetched.

    Args:
        source: A Hub repository, or a folder.
        revision: Branch, tag or commit.
        token: A token, instead of the one that `hf auth login` stored; False for none.

    Returns:
        One entry for each, in natural order of their names. Configs that are none of an SAE are left out with a
        warning.

    Raises:
        OSError: If there is no such repository, or it cannot be reached.

    Example:
        >>> [entry.name for entry in list_saes("org/gpt2-saes")]  # doctest: +SKIP
        ['resid_post.8/topk-12288-32', 'resid_post.8/topk-12288-64']
    """
    root = Path(source)
    if root.is_dir():
        found = [entry_from(root / name, name, str(source)) for name in sae_folders(root)]
        return [entry for entry in found if entry is not None]
    repo_id = str(source)
    snapshot = look(repo_id, revision, token)
    blobs = config_blobs(snapshot.files)
    entries: dict[str, SAEEntry] = {}
    if is_worth_fetching(snapshot.files, INDEX_FILE):
        with reachable():
            index = hf_hub_download(repo_id, INDEX_FILE, token=usable_token(token), **snapshot.where)
        entries = read_index(Path(index), repo_id, blobs)
    for name in blobs.keys() - entries.keys():
        if entry := entry_from(repo_id, name, repo_id, subfolder=name, token=usable_token(token), **snapshot.where):
            entries[name] = entry
    return [entries[name] for name in sorted(entries, key=natural_order)]


def find_saes(
    *,
    base_model: str | None = None,
    hook_point: str | None = None,
    architecture: str | None = None,
    author: str | None = None,
    search: str | None = None,
    limit: int = _MOST_REPOSITORIES,
    token: str | bool | None = None,
) -> list[SAEEntry]:
    """Searches the Hub for SAEs by what their cards' metadata say.

    Args:
        base_model: Hub id of the language model: `"openai-community/gpt2"`.
        hook_point: Portable or canonical name of the place: `"resid_post.8"`, `"transformer.h.8.output"`. Crosscoders
            are found by any place that they read, or by all of them, joined with +.
        architecture: `"topk"`, ...
        author: User or organisation.
        search: Words in the repositories' names.
        limit: Repositories to look into, at most.
        token: A token, instead of the one that `hf auth login` stored; False for none.

    Returns:
        The SAEs that fit, with their repositories. Of a repository with many SAEs only the SAEs that fit themselves.

    Raises:
        ValueError: If `hook_point` can be no name of a place.
        OSError: If the Hub cannot be reached.

    Example:
        >>> found = find_saes(base_model="openai-community/gpt2", architecture="topk")  # doctest: +SKIP
        >>> SAE.from_pretrained(found[0].repo_id, subfolder=found[0].name)  # doctest: +SKIP
    """
    places = place_tags(hook_point)
    if hook_point is not None and len(places) < len(places_in(hook_point)):
        raise ValueError(f"{hook_point!r} is no name of a place; give one such as 'resid_post.8'.")
    tags = [LIBRARY, f"base_model:adapter:{base_model}" if base_model else None, *places, architecture]
    api = HfApi(token=usable_token(token), library_name=LIBRARY)
    wanted_tags = [tag for tag in tags if tag]
    with reachable():
        models = list(api.list_models(filter=wanted_tags, author=author, search=search, limit=limit))
    wanted = {"base_model": base_model, "architecture": architecture}
    return [
        entry
        for model in models
        for entry in _list_leniently(model.id, token)
        if all(value in (None, getattr(entry, name)) for name, value in wanted.items())
        if hook_point is None or _reads(entry, hook_point)
    ]


def _reads(entry: SAEEntry, place: str) -> bool:
    """Whether an SAE reads at a place, or a crosscoder there too."""
    names = [name for name in (entry.portable_name, entry.hook_point) if name]
    return any(place == name or place in places_in(name) for name in names)


def _list_leniently(repo_id: str, token: str | bool | None) -> list[SAEEntry]:
    """The SAEs of a repository that a search found; none where it cannot be read (gated, or gone since)."""
    try:
        return list_saes(repo_id, token=token)
    except OSError as error:
        logger.warning("%s is left out: %s", repo_id, " ".join(str(error).split()))
        return []
