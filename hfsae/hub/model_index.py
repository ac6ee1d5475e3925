"""The `model-index` of a card: our entry among those of others, told apart by who measured and by the text.

`huggingface_hub` (2.4) groups results by task type and by type, configuration, split and revision of the data set. As
soon as it reads and writes a card, it gives all entries of a group the last one's name. So each of our metrics says by
itself that it is ours. A text that is not on the Hub has its name where that grouping looks.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hfsae.evaluation.metrics import METRICS
from hfsae.hub.hub_ids import dataset_id, without_folders
from hfsae.hub.kinds import mapping, number, string

_TASK = {"type": "feature-extraction", "name": "Reconstruction of language model activations"}
_TITLES = {metric.name: metric.title for metric in METRICS if metric.reported}
# How a metric is computed, by which ours are told from others of that name.
_CONFIG = "hfsae"
# What makes two texts different.
_TEXT = ("type", "name", "config", "split", "revision")


def model_index_entry(name: str, metrics: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Measured metrics as an entry; None where there is no finite number among them.

    Args:
        name: What the entry calls the SAE.
        metrics: Shaped like `config.metrics`.
    """
    values = {metric: number(mapping(metrics).get(metric)) for metric in _TITLES}
    measured = [
        {"type": metric, "value": value, "name": _TITLES[metric], "config": _CONFIG}
        for metric, value in values.items()
        if value is not None
    ]
    if not measured:
        return None
    return {"name": name, "results": [{"task": _TASK, "dataset": dataset_of(metrics), "metrics": measured}]}


def dataset_of(metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """The text that metrics were measured on, as a `model-index` names it."""
    protocol = mapping(mapping(metrics).get("protocol"))
    name = without_folders(string(protocol.get("dataset")) or "unknown")
    files = protocol.get("data_files")
    chosen = [str(file) for file in (files if isinstance(files, list | tuple) else [files] if files else [])]
    config = [string(protocol.get("dataset_config")), *map(without_folders, chosen)]
    hub = dataset_id(name)
    told = [part for part in ([] if hub else [name]) + config if part]
    n_tokens = number(protocol.get("n_tokens"))
    args = {
        "n_tokens": None if n_tokens is None else int(n_tokens),
        "left_out": string(protocol.get("left_out")),
        "part": string(protocol.get("part")),
    }
    dataset = {
        "name": name,
        "type": hub or "other",
        "config": ", ".join(told) or None,
        "split": string(protocol.get("split")),
        "revision": string(protocol.get("dataset_revision")),
        "args": {key: value for key, value in args.items() if value} or None,
    }
    return {key: value for key, value in dataset.items() if value is not None}


def merged(existing: Any, ours: dict[str, Any] | None) -> list[Any]:
    """An index in which our entry is replaced; what others measured stays as it is, in our entry too.

    Args:
        existing: The index of a card, None where it has none.
        ours: Our entry; None removes it.
    """
    entries = existing if isinstance(existing, list) else []
    place = _our_place(entries, ours)
    if place is None:
        return [*([ours] if ours else []), *entries]
    theirs = [rest for result in _results(entries[place]) if (rest := _without_ours(result)) is not None]
    mine = ours["results"] if ours else []
    both = {**entries[place], "results": [*mine, *theirs]} if theirs else ours
    return [*entries[:place], *([both] if both else []), *entries[place + 1 :]]


def claims(index: Any, metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """The figures that a card claims of the text of its SAE's record.

    Args:
        index: The `model-index`.
        metrics: The record.

    Raises:
        ValueError: If one figure is claimed with two values.
    """
    entries = index if isinstance(index, list) else []
    place = _our_place(entries, model_index_entry("", metrics))
    if place is None:
        return {}
    results = [result for result in _results(entries[place]) if any(_ours_in(result))]
    recorded = [result for result in results if _same_text(result, dataset_of(metrics))]
    found: dict[str, float] = {}
    for result in recorded or results:
        for metric in _metrics(result):  # others' too: two values for one text are two claims
            name, value = string(metric.get("type")) or "", number(metric.get("value"))
            if name not in _TITLES or value is None:
                continue
            if found.setdefault(name, value) != value:
                raise ValueError(
                    f"it claims two values for {_TITLES[name]}, {found[name]:g} and {value:g}: mend its model-index."
                )
    return found


def _our_place(entries: Sequence[Any], ours: dict[str, Any] | None) -> int | None:
    """Which entry is ours: the one of our metrics on our text, else the first one that has metrics of ours."""
    places = [i for i, entry in enumerate(entries) if any(any(_ours_in(result)) for result in _results(entry))]
    if ours is not None:
        dataset = ours["results"][0]["dataset"]
        same = [i for i in places if any(_same_text(result, dataset) for result in _results(entries[i]))]
        places = same or places
    return places[0] if places else None


def _same_text(result: Mapping[str, Any], dataset: Mapping[str, Any]) -> bool:
    theirs = mapping(result.get("dataset"))
    return all(theirs.get(key) == dataset.get(key) for key in _TEXT)


def _results(entry: Any) -> list[dict[str, Any]]:
    results = mapping(entry).get("results")
    return [result for result in results if isinstance(result, dict)] if isinstance(results, list) else []


def _metrics(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    metrics = result.get("metrics")
    return [metric for metric in metrics if isinstance(metric, dict)] if isinstance(metrics, list) else []


def _ours_in(result: Mapping[str, Any]) -> Iterator[bool]:
    """Of each metric of a result whether it is ours; earlier versions told theirs by their names alone."""
    if mapping(result.get("task")).get("name") != _TASK["name"]:
        return
    for metric in _metrics(result):
        title, mark = _TITLES.get(string(metric.get("type")) or ""), metric.get("config")
        yield title is not None and (mark == _CONFIG or (mark is None and metric.get("name") == title))


def _without_ours(result: dict[str, Any]) -> dict[str, Any] | None:
    """What others measured of a result; None where nothing is left."""
    flags = list(_ours_in(result))
    if not any(flags):
        return result
    theirs = [metric for metric, is_ours in zip(_metrics(result), flags, strict=True) if not is_ours]
    return {**result, "metrics": theirs} if theirs else None
