"""Publishing SAEs: weights, configs, cards and plots of one or many in one atomic commit."""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitInfo

from hfsae.autoencoder.model import SparseAutoencoder
from hfsae.configuration import LANGUAGE_MODEL, SAEConfig
from hfsae.hub.card import (
    CARD_FILE,
    DASHBOARD_FILE,
    DIFF_FILE,
    DIFF_PLOT,
    FEATURE_DENSITY,
    LAYERS_PLOT,
    LOG_FILE,
    TRAINING_CURVE,
    difference,
    is_dashboard_of,
    read_card,
    write_card,
)
from hfsae.hub.hub_ids import without_folders
from hfsae.hub.listing import write_listing
from hfsae.hub.repository import Destination, Repository
from hfsae.hub.score_summary import SCORES_FILE
from hfsae.hub.sections import HOUSEKEEPING
from hfsae.label_file import LABELS_FILE
from hfsae.progress import quietly
from hfsae.sae_folders import CONFIG_FILE, LAST_CHECKPOINT
from hfsae.saving import write_json
from hfsae.storage import SUMS, read_json, read_sums, sha256_of, write_sums

logger = logging.getLogger(__name__)

# What may hold folders in the files of a checkpoint.
_PLACES = ("base_model", "base_model_adapter", "source_models", "training", "metrics", "arguments", "own_arguments")
METRICS_FILE = "metrics.json"
_WEIGHTS = "*.safetensors*"  # with the index of several shards
# What a push writes besides config and card; what it no longer writes of these it deletes.
_PICTURES = (TRAINING_CURVE, FEATURE_DENSITY, LAYERS_PLOT, DIFF_PLOT)
_GENERATED = (_WEIGHTS, SUMS, LOG_FILE, METRICS_FILE, *_PICTURES, DASHBOARD_FILE, DIFF_FILE)


@dataclass(frozen=True)
class Saved:
    """An SAE, and the folder that training saved it in where there is one."""

    sae: SparseAutoencoder
    folder: Path | None = None


@dataclass(frozen=True)
class CardFields:
    """What a card's metadata say that no config knows.

    Args:
        license: A licence id of the Hub, such as `"apache-2.0"`.
        language: ISO 639 codes of the text, such as `"en"`.
    """

    license: str | None = None
    language: str | list[str] | None = None


def publish(
    saes: Mapping[str, Saved],
    destination: Destination,
    *,
    card: CardFields = CardFields(),
    beside: Path | None = None,
    together: Mapping[str, Any] | None = None,
) -> CommitInfo:
    """Puts SAEs into a repository, each into the folder of its name, with their cards and the table of them all.

    Args:
        saes: What to publish, by folder; `""` is the root of the repository.
        destination: Where to.
        card: For the metadata of cards.
        beside: A folder that becomes the repository's `last-checkpoint`.
        together: The record of the set that the SAEs are, in whose repository no other SAEs are.

    Returns:
        What `huggingface_hub` says of the commit; of the newest one, where nothing had changed.

    Raises:
        ValueError: If a name cannot be a folder, or a card on the Hub has metadata that cannot be read.
        PushError: If the Hub refuses.
    """
    for name in saes:
        _check_name(name)
    repository = Repository(destination)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for name, saved in saes.items():
            with _fit_for_publication(saved.sae.config):
                _write(place / name, name, saved, repository, card)
        record = None if together is None else _without_folders(dict(together))
        loaded = {name: saved.sae for name, saved in saes.items()}
        write_listing(place, loaded, repository, card.license, card.language, record)
        gone = [path for name in saes for path in _left_over(repository, place, name)]
        if beside is not None:
            shutil.copytree(beside, place / LAST_CHECKPOINT)
            _make_fit(place / LAST_CHECKPOINT)
            gone += [path for path in repository.files if _is_old_checkpoint(path, place)]
        only = next(iter(saes.values())).sae
        what = type(only).__name__ if len(saes) == 1 else f"{len(saes)} SAEs"
        return repository.commit(place, f"Upload {what}", gone)


def _check_name(name: str) -> None:
    parts = name.split("/") if name else []
    if any(part in ("", ".", "..") or not part.isprintable() or "\\" in part for part in parts):
        raise ValueError(f"{name!r} cannot be a folder of a repository: give names such as 'resid_post.8/topk-12288'.")
    if parts and (parts[0].startswith(".") or parts[0] == LAST_CHECKPOINT):
        raise ValueError(f"{name!r} is kept for other things: choose another folder.")


def _write(place: Path, name: str, saved: Saved, repository: Repository, fields: CardFields) -> None:
    """Everything that is published of one SAE."""
    sae, prefix = saved.sae, f"{name}/" if name else ""
    with quietly():
        sae.save_pretrained(place)
        (place / SUMS).unlink()  # the Hub keeps the digests of its files itself
    for path in (LOG_FILE, CARD_FILE, LABELS_FILE, SCORES_FILE):
        if saved.folder is not None and (saved.folder / path).is_file():
            shutil.copy(saved.folder / path, place / path)
    if saved.folder is None and (log := _published_log(repository, prefix, sae.config)):
        shutil.copy(log, place / LOG_FILE)
    if page := _dashboard(repository, prefix, saved):
        shutil.copy(page, place / DASHBOARD_FILE)
    if saved.folder is not None and difference(saved.folder, sae) is not None:
        write_json(place / DIFF_FILE, _without_folders(read_json(saved.folder / DIFF_FILE)))
        if (saved.folder / DIFF_PLOT).is_file():
            shutil.copy(saved.folder / DIFF_PLOT, place / DIFF_PLOT)
    if sae.config.metrics is not None:
        write_json(place / METRICS_FILE, sae.config.metrics)
    published = repository.download(prefix + CARD_FILE)
    card = read_card(published, f"{prefix}{CARD_FILE} of {repository.repo_id}") if published else None
    write_card(
        place,
        sae,
        repo_id=repository.repo_id,
        subfolder=name or None,
        existing=card,
        license=fields.license,
        language=fields.language,
    )


def _published_log(repository: Repository, prefix: str, config: SAEConfig) -> Path | None:
    """The log that was published with the same training: an SAE that came from the Hub brings none of its own."""
    config_file = repository.download(prefix + CONFIG_FILE)
    if config_file is None or config.training is None:
        return None
    try:
        published = json.loads(config_file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None  # what is broken there is about to be replaced
    same = isinstance(published, dict) and published.get("training") == json.loads(json.dumps(config.training))
    return repository.download(prefix + LOG_FILE) if same else None


def _dashboard(repository: Repository, prefix: str, saved: Saved) -> Path | None:
    """The dashboard of this very SAE, where there is one: the folder's, or else the one that is published."""
    page = None if saved.folder is None else saved.folder / DASHBOARD_FILE
    if page is not None and page.is_file():
        if is_dashboard_of(page, saved.sae):
            return page
        logger.warning("%s shows other weights or settings and is not pushed; `hfsae dashboard` makes it again", page)
    published = repository.download(prefix + DASHBOARD_FILE)
    return published if published is not None and is_dashboard_of(published, saved.sae) else None


def _left_over(repository: Repository, place: Path, name: str) -> list[str]:
    """What an earlier push left in an SAE's folder that says nothing about the one that is there now."""
    inside = [path for path in repository.files if path.rpartition("/")[0] == name]
    generated = [path for path in inside if any(PurePosixPath(path).match(pattern) for pattern in _GENERATED)]
    return [path for path in generated if not (place / path).exists()]


def _is_old_checkpoint(path: str, place: Path) -> bool:
    return path.startswith(f"{LAST_CHECKPOINT}/") and not (place / path).exists()


@contextmanager
def _fit_for_publication(config: SAEConfig) -> Iterator[None]:
    """Leaves out what means nothing elsewhere: folders of this machine, and how its run was kept."""
    language_models = [name for name in (*LANGUAGE_MODEL, "source_models") if hasattr(config, name)]
    kept = {name: getattr(config, name) for name in (*language_models, "training", "metrics")}
    if any(without_folders(place) != place for place in config.named_models):
        for name in language_models:  # all or nothing: without its adapter it is another language model
            setattr(config, name, None)
    config.training, config.metrics = (_without_folders(values) for values in (config.training, config.metrics))
    if config.training is not None and isinstance(arguments := config.training.get("arguments"), dict):
        config.training["arguments"] = {name: arguments[name] for name in arguments if name not in HOUSEKEEPING}
    if config.training is not None:
        config.training.pop("folder", None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(config, name, value)


def _make_fit(checkpoint: Path) -> None:
    """Shortens the folders that a checkpoint names; whoever goes on from it has them elsewhere."""
    for path in (checkpoint / "run.json", *checkpoint.glob("saes/**/config.json")):
        said = read_json(path)
        said.pop("folder", None)
        places = {name: _without_folders(said[name]) for name in _PLACES if said.get(name)}
        write_json(path, said | places)
    deepest_first = sorted(checkpoint.rglob(SUMS), key=lambda path: len(path.parts), reverse=True)
    for folder in (path.parent for path in deepest_first):  # sums of sums come last
        write_sums(folder, {name: sha256_of(folder / name) for name in read_sums(folder)})


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_folders(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    return without_folders(value) if isinstance(value, str) and value else value
