"""What a listing says of one SAE among many, and the index file that spares a reader all their configs."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hfsae.autoencoder.registry import architecture_name
from hfsae.configuration import SAEConfig
from hfsae.evaluation.metrics import names_by
from hfsae.evaluation.protocol import has_stale_figures
from hfsae.hub.hub_ids import dataset_id, hub_id
from hfsae.hub.kinds import mapping, number
from hfsae.hub.metadata import place_tags, recorded_portable_name

logger = logging.getLogger(__name__)

INDEX_FILE = "saes.json"
_INDEX_VERSION = 1

# The figures that a listing tells of each SAE.
LISTED = names_by("listed")


@dataclass(frozen=True, kw_only=True)
class SAEEntry:
    """One SAE of a repository, from its config: its weights were not fetched.

    Args:
        name: Its folder in the repository, which `SAE.from_pretrained` takes as `subfolder`; `""` for the root.
        repo_id: The repository, or the folder on this machine.
        architecture: `"topk"`, ...
        d_in: Size of the activations that it reads.
        n_features: Number of features.
        base_model: Hub id of its language model.
        hook_point: Canonical name of the place where it reads.
        portable_name: Portable name of that place, where it has one.
        dataset: Hub id of the text it was trained on.
        n_tokens: Tokens it was trained on.
        metrics: `l0`, `loss_recovered`, `explained_variance`, `dead_fraction`, as far as they were measured.
        stale: Whether those were measured on other weights or with other settings, as far as is known.
    """

    name: str
    repo_id: str = ""
    architecture: str
    d_in: int
    n_features: int
    base_model: str | None = None
    hook_point: str | None = None
    portable_name: str | None = None
    dataset: str | None = None
    n_tokens: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    stale: bool = False

    @property
    def place(self) -> str | None:
        """The shortest name of where it reads."""
        return self.portable_name or self.hook_point

    @property
    def tags(self) -> list[str]:
        """The tags by which its repository is found on its account."""
        return [self.architecture, *place_tags(self.portable_name, self.hook_point)]


def sae_entry(config: SAEConfig, name: str, repo_id: str = "", weights_digest: str | None = None) -> SAEEntry:
    """What a config says.

    Args:
        config: The config.
        name: The SAE's folder.
        repo_id: The repository.
        weights_digest: The digest of the weights beside it, where it is known.
    """
    training, metrics = mapping(config.training), mapping(config.metrics)
    figures = {metric: number(metrics.get(metric)) for metric in LISTED}
    n_tokens = number(training.get("n_tokens"))
    return SAEEntry(
        name=name,
        repo_id=repo_id,
        architecture=architecture_name(config),
        d_in=config.d_in,
        n_features=config.n_features,
        base_model=hub_id(config.base_model),
        hook_point=config.hook_point,
        portable_name=recorded_portable_name(config),
        dataset=dataset_id(training.get("dataset")),
        n_tokens=None if n_tokens is None else int(n_tokens),
        metrics={metric: value for metric, value in figures.items() if value is not None},
        stale=has_stale_figures(config, weights_digest),
    )


def zoo_name(config: SAEConfig) -> str:
    """The folder of an SAE among many: `{place}/{architecture}-{n_features}-{k or L0}`, as far as these are known.

    Example:
        >>> from hfsae import TopKSAEConfig
        >>> zoo_name(TopKSAEConfig(d_in=8, n_features=64, k=4, hook_point="resid_post.1"))
        'resid_post.1/topk-64-4'
    """
    entry = sae_entry(config, "")
    active = getattr(config, "k", None) or (round(entry.metrics["l0"]) if "l0" in entry.metrics else None)
    parts = [str(part) for part in (entry.architecture, entry.n_features, active) if part is not None]
    return "/".join(part for part in (entry.place, "-".join(parts)) if part)


def index_text(entries: Mapping[str, tuple[SAEEntry, str]]) -> str:
    """The index file.

    Args:
        entries: Every SAE and the git blob id of its config, by name.
    """
    saes = {name: {**_stored(entry), "config": blob_id} for name, (entry, blob_id) in entries.items()}
    return json.dumps({"version": _INDEX_VERSION, "saes": saes}, indent=2, sort_keys=True) + "\n"


def read_index(path: Path, repo_id: str, configs: Mapping[str, str | None]) -> dict[str, SAEEntry]:
    """Those SAEs of an index file whose configs are still the ones that it was made of.

    Args:
        path: The file, which somebody else may have written: what does not fit is passed over.
        repo_id: The repository.
        configs: The git blob id of every config that there is, by name.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        stored = index["saes"] if index["version"] == _INDEX_VERSION else {}
        known = {name: value for name, value in stored.items() if name in configs}
        fresh = {name: value for name, value in known.items() if value.pop("config") == configs[name]}
        return {name: _restored(name, repo_id, value) for name, value in fresh.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.warning("the index of %s cannot be read (%s): the configs are read one by one", repo_id, error)
        return {}


def _stored(entry: SAEEntry) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if name not in ("name", "repo_id")}


def _restored(name: str, repo_id: str, stored: dict[str, Any]) -> SAEEntry:
    kinds = {"d_in": int, "n_features": int, "architecture": str, "stale": bool, "metrics": dict, "n_tokens": int}
    known = {item.name for item in fields(SAEEntry)} - {"name", "repo_id"}
    for key, value in stored.items():
        optional = value is None and key not in ("d_in", "n_features", "architecture", "stale", "metrics")
        if key not in known or not (optional or type(value) is kinds.get(key, str)):
            raise TypeError(f"{key} of {name} is {value!r}")
    figures = {metric: number(stored["metrics"].get(metric)) for metric in LISTED}
    metrics = {metric: value for metric, value in figures.items() if value is not None}
    return SAEEntry(**{**stored, "name": name, "repo_id": repo_id, "metrics": metrics})
