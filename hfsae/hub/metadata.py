"""The front matter of a card: what the Hub filters by, and what was measured in a form that programs read.

`base_model_relation: adapter` lists the SAE on the page of its language model.
"""

import math
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hfsae.architectures import architecture_name, architectures
from hfsae.configuration import SAEConfig
from hfsae.evaluation.healthy import METRICS

LIBRARY = "hfsae"
TAGS = ("sparse-autoencoder", "sae", "mechanistic-interpretability", LIBRARY)

_TASK = "Reconstruction of language model activations"
_REPORTED = {"l0", "loss_recovered", "explained_variance", "dead_fraction", "mse", "kl"}
_REPORTED |= {metric.name for metric in METRICS if metric.name.startswith("ce_")}
_PROTOCOL = ("dataset", "dataset_config", "dataset_revision", "split", "left_out")
_FILE_SUFFIXES = {".txt", ".json", ".jsonl", ".csv", ".parquet", ".arrow", ".gz", ".zst"}
_TAG = re.compile(r"[\w.-]{1,96}", re.ASCII)
# Names of places, portable and canonical, as `place_tags` leaves them on a card.
_PLACE = re.compile(r"[a-z]+_[a-z]+\.\d+|embed|[\w.]+\.(input|output)", re.ASCII)
# What replaces the value in an existing card, where there is something to say.
_OURS = ("library_name", "pipeline_tag", "base_model", "base_model_relation", "datasets", "license", "language")


def number(value: Any) -> float | None:
    """A plain float of what may be a NumPy or torch scalar; None for what is not one finite number."""
    if value is None or isinstance(value, str | bool):
        return None
    try:
        plain = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return plain if math.isfinite(plain) else None


def hub_id(name: str | None) -> str | None:
    """The name, if it can be the id of a Hub repository; None if it is a path, a file's name, or no id at all."""
    if not name or PurePosixPath(name).suffix in _FILE_SUFFIXES:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).exists() else name


def dataset_id(name: str | None) -> str | None:
    """Like `hub_id`, for datasets, whose ids have a namespace: `python-stdlib` is none."""
    return hub_id(name) if name and "/" in name else None


def without_folders(name: str) -> str:
    """A name fit for publication: of a path outside the working directory only its last part."""
    outside = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or name[:1] in ("~", ".")
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1] if outside else name


def portable_name(config: SAEConfig) -> str | None:
    """The portable name of the place that an SAE reads (`"resid_post.8"`), as training recorded it."""
    name = (config.training or {}).get("portable_name")
    return name if isinstance(name, str) else None


def front_matter(
    config: SAEConfig,
    model_name: str,
    *,
    metrics: dict[str, Any] | None,
    license: str | None = None,
    language: str | list[str] | None = None,
) -> ModelCardData:
    """The metadata that a config gives rise to.

    Args:
        config: The SAE's config.
        model_name: What the `model-index` calls the SAE.
        metrics: Figures for the `model-index`, shaped like `config.metrics`; None where there are none that hold.
        license: A license id of the Hub.
        language: ISO 639 codes of the text.

    Returns:
        Plain values only: a NumPy or torch scalar would be dumped into YAML as a pickle.
    """
    results = eval_results(metrics)
    tags = [*TAGS, architecture_name(config), *(["transcoder"] if config.is_transcoder else [])]
    models = [name for name in (config.base_model, config.base_model_adapter) if name is not None and hub_id(name)]
    dataset = dataset_id((config.training or {}).get("dataset"))
    return ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="feature-extraction",
        tags=[*tags, *place_tags(portable_name(config), config.hook_point)],
        base_model=models[0] if len(models) == 1 else models or None,
        base_model_relation="adapter" if models else None,
        datasets=[dataset] if dataset else None,
        license=license,
        language=language,
        # Without results a model's name would stand in the metadata by itself.
        model_name=model_name if results else None,
        eval_results=results or None,
    )


def place_tags(*names: str | None) -> list[str]:
    """The names of a place as tags, by which SAEs that read there are found; none for what cannot be a tag."""
    return [name for name in names if name and _TAG.fullmatch(name)]


def eval_results(metrics: dict[str, Any] | None) -> list[EvalResult]:
    """Measured metrics as entries of a `model-index`; those that are not finite numbers are left out."""
    measured = {name: number((metrics or {}).get(name)) for name in _REPORTED}
    protocol = (metrics or {}).get("protocol") or {}
    told = {name: str(protocol[name]) for name in _PROTOCOL if protocol.get(name) is not None}
    n_tokens = number(protocol.get("n_tokens"))
    args = {"n_tokens": n_tokens and int(n_tokens), "left_out": told.get("left_out")}
    dataset = without_folders(told.get("dataset", "unknown"))
    return [
        EvalResult(
            task_type="feature-extraction",
            task_name=_TASK,
            dataset_type=dataset_id(dataset) or "other",
            dataset_name=dataset,
            dataset_config=told.get("dataset_config"),
            dataset_split=told.get("split"),
            dataset_revision=told.get("dataset_revision"),
            dataset_args={name: value for name, value in args.items() if value} or None,
            metric_type=metric.name,
            metric_name=metric.title,
            metric_value=measured[metric.name],
        )
        for metric in METRICS
        if measured.get(metric.name) is not None
    ]


def merge(existing: ModelCardData, ours: ModelCardData) -> ModelCardData:
    """Our metadata over that of an existing card, of which everything that we say nothing about is kept.

    Tags are joined, less the names of other architectures and places; results of other people's metrics stay in the
    `model-index`, while our figures go when we no longer have them.
    """
    merged = existing.to_dict()
    merged.pop("model-index", None)
    merged |= {key: ours[key] for key in _OURS if ours.get(key) is not None}
    theirs = [tag for tag in existing.tags or () if tag not in architectures() and not _PLACE.fullmatch(tag)]
    merged["tags"] = [*(ours.tags or ()), *theirs]
    others = [result for result in existing.eval_results or () if not is_ours(result)]
    if results := [*(ours.eval_results or ()), *others]:
        merged |= {"eval_results": results, "model_name": ours.model_name or existing.model_name}
    return ModelCardData(**merged)


def is_ours(result: EvalResult) -> bool:
    """Whether a result of a card is one of those that `eval_results` makes."""
    return result.task_name == _TASK and result.metric_type in _REPORTED
