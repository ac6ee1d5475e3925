"""The front matter of a card: what the Hub filters by, and what was measured in a form that programs read.

`base_model_relation: adapter` lists the SAE on the page of its language model.
"""

import re
from collections.abc import Mapping
from typing import Any

from hfsae.autoencoder.registry import architecture_name, architecture_names
from hfsae.configuration import SAEConfig, places_in
from hfsae.hub import model_index
from hfsae.hub.hub_ids import dataset_id, hub_id
from hfsae.hub.kinds import mapping, string

LIBRARY = "hfsae"
TAGS = ("sparse-autoencoder", "sae", "mechanistic-interpretability", LIBRARY)

_TAG = re.compile(r"[\w.-]{1,96}", re.ASCII)
# Names of places, portable and canonical, as `place_tags` leaves them on a card.
_PLACE = re.compile(r"[a-z]+_[a-z]+\.\d+|embed|[\w.]+\.(input|output)", re.ASCII)
# What replaces the value in an existing card, where there is something to say.
_OURS = ("library_name", "pipeline_tag", "base_model", "base_model_relation", "datasets", "license", "language")
_INDEX = "model-index"


def recorded_portable_name(config: SAEConfig) -> str | None:
    """The portable name of the place that an SAE reads (`"resid_post.8"`), as training recorded it."""
    return string(mapping(config.training).get("portable_name"))


def front_matter(
    config: SAEConfig,
    model_name: str,
    *,
    metrics: Mapping[str, Any] | None,
    license: str | None = None,
    language: str | list[str] | None = None,
) -> dict[str, Any]:
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
    entry = model_index.model_index_entry(model_name, metrics)
    tags = [*TAGS, architecture_name(config), *(["transcoder"] if config.is_transcoder else [])]
    models = [name for name in config.named_models if hub_id(name)]
    dataset = dataset_id(mapping(config.training).get("dataset"))
    data = {
        "base_model": models[0] if len(models) == 1 else models or None,
        "datasets": [dataset] if dataset else None,
        "language": language,
        "library_name": LIBRARY,
        "license": license,
        "pipeline_tag": "feature-extraction",
        "tags": list(dict.fromkeys([*tags, *place_tags(recorded_portable_name(config), config.hook_point)])),
        "base_model_relation": "adapter" if models else None,
        _INDEX: [entry] if entry else None,
    }
    return {key: value for key, value in data.items() if value is not None}


def place_tags(*names: str | None) -> list[str]:
    """The names of a place as tags, by which SAEs that read there are found; none for what cannot be a tag.

    Of places that a crosscoder joins, each has its own.
    """
    return [part for name in names if name for part in places_in(name) if _TAG.fullmatch(part)]


def merge(existing: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Our metadata over that of an existing card, of which everything that we say nothing about is kept.

    Tags are joined, less the names of other architectures and places. Results of other people's metrics stay in the
    `model-index`, while our figures go when we no longer have them.

    Args:
        existing: The metadata of the card, as its YAML has them.
        ours: What `front_matter` gave.
    """
    merged = {**existing, **{key: ours[key] for key in _OURS if key in ours}}
    tags = existing.get("tags")
    theirs = [tag for tag in (tags if isinstance(tags, list) else [tags] if tags else []) if not _says_what_it_is(tag)]
    joined = list(ours.get("tags", ()))
    merged["tags"] = [*joined, *(tag for i, tag in enumerate(theirs) if tag not in joined and tag not in theirs[:i])]
    (entry,) = ours.get(_INDEX) or [None]
    merged[_INDEX] = model_index.merged(existing.get(_INDEX), entry)
    if not merged[_INDEX]:
        del merged[_INDEX]
    return merged


def _says_what_it_is(tag: Any) -> bool:
    """Whether a tag names an architecture or a place, of which ours are the true ones."""
    return isinstance(tag, str) and (tag in architecture_names() or _PLACE.fullmatch(tag) is not None)
