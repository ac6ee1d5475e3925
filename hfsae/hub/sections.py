"""What the card template prints: a config's facts sorted into tables, and the remarks that follow from the figures."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hfsae.autoencoder.registry import architecture_name, class_of
from hfsae.configuration import SAEConfig
from hfsae.data.left_out import in_words
from hfsae.data.text_source import DEFAULTS, FIELD_TITLES
from hfsae.evaluation.metrics import metrics_for, too_few_to_tell
from hfsae.evaluation.predictions import NEXT_TOKEN
from hfsae.hub.hub_ids import hub_id, without_folders
from hfsae.hub.kinds import mapping, number, string
from hfsae.hub.markdown import duration, figure
from hfsae.hub.weight_facts import WeightFacts
from hfsae.hub.whole_set import rows_of_runs

Rows = list[tuple[str, str]]

_PROTOCOL = {
    **FIELD_TITLES,
    "n_tokens": "tokens",
    "n_sequences": "sequences",
    "context_length": "context length",
    "left_out": "left out",
    "tokens_sha256": "SHA-256 of the tokens",
    "loss": "loss",
    "ablation": "ablation",
    "dtype": "precision",
    "hfsae_version": "hfsae",
    "transformers_version": "transformers",
    "torch_version": "torch",
    "date": "date",
    "weights_sha256": "SHA-256 of the weights",
}
_TRAINING = {
    "dataset": "text",
    "split": "split",
    "dataset_digest": "digest of the text",
    "model_precision": "language model's precision",
    "n_tokens": "tokens",
    "steps": "optimiser steps",
    "batch_tokens": "tokens per step",
    "seed": "seed",
    "target_l0": "L0 to steer to",
    "final_l0": "L0 at the end, smoothed",
    "seconds": "time",
    "tokens_per_second": "tokens per second",
    "hardware": "hardware",
}
_BASELINES = {
    "untrained": ("untrained SAE", "an SAE of this shape before training, with the data's mean and one fitted gain"),
    "pca": ("PCA", "the first principal components of the activations, all of them active on every token"),
}
# Shown elsewhere on the card, or in no table at all.
_NOT_ROWS = {
    *("arguments", "folder", "versions", "portable_name", "calibration", "evaluation", "max_tokens"),
    *("sae_lens_metadata", "settings"),
}
# Where a run was kept and what it printed: nothing about the SAE.
HOUSEKEEPING = {
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "run_name",
    "disable_tqdm",
    "html_report",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_revision",
    "hub_private_repo",
}


@dataclass(frozen=True)
class Stale:
    """That figures were measured on other weights than those beside the card, or with other settings.

    Args:
        measured: The beginning of the digest of the weights that were measured.
        stored: The beginning of the digest of the weights there are.
        settings: The fields of the config that have changed since.
    """

    measured: str = ""
    stored: str = ""
    settings: tuple[str, ...] = ()


def card_values(
    config: SAEConfig,
    repo_id: str | None,
    subfolder: str | None,
    weights: WeightFacts | None,
    stale: Stale | None,
    beside: set[str],
) -> dict[str, Any]:
    """Everything that the template `sae_card.md.jinja` prints.

    Args:
        config: The SAE's config.
        repo_id: Where it is on the Hub.
        subfolder: Its folder there.
        weights: What is known of its weights.
        stale: Whether its figures belong to other weights or settings.
        beside: File names of the pictures and of the dashboard, where they lie beside the card.
    """
    metrics, training = mapping(config.metrics), mapping(config.training)
    headline, further = measured(metrics, headline=True), measured(metrics, headline=False)
    return {
        "config": config,
        "name": display_name(config, repo_id, subfolder),
        "class_name": class_of(architecture_name(config)).__name__,
        "about_architecture": about_architecture(config),
        "settings": architecture_settings(config),
        "base_model": hub_id(config.base_model),
        "adapter": hub_id(config.base_model_adapter),
        "compared": _compared(config),
        "loaded_with": _loaded_with(config),
        "portable_name": string(training.get("portable_name")),
        "repo_id": repo_id,
        "subfolder": subfolder,
        "weights": weights,
        "left_out": left_out(config),
        "figures": {row["metric"].name: row["value"] for row in headline + further if row["value"] is not None},
        "stale": stale,
        "headline": headline,
        "further": further,
        "baseline_titles": baseline_titles(metrics),
        "baseline_meanings": baseline_meanings(metrics),
        "remarks": remarks(metrics, config),
        "by_source": by_source(metrics, headline),
        "together": rows_of_runs(together) if (together := mapping(metrics.get("together"))) else [],
        "together_figures": {name: number(together.get(name)) for name in ("loss_recovered", "l0")},
        "missing": missing(headline + further),
        "other_loss": other_loss(mapping(metrics.get("protocol"))),
        "n_tokens": figure(number(metrics.get("n_tokens"))),
        "protocol": protocol_rows(mapping(metrics.get("protocol"))),
        "training": training_rows(training),
        "trained_on": without_folders(string(training.get("dataset")) or ""),
        "arguments": argument_rows(training),
        "versions": sorted(mapping(training.get("versions")).items()),
        "beside": beside,
    }


def display_name(config: SAEConfig, repo_id: str | None, subfolder: str | None) -> str:
    """What a card calls its SAE: the repository's name, or what the config describes where there is none.

    The L0 that it was to have may stand in its folder's name; where it became another, that is said.
    """
    missed = missed_l0(config)
    if repo_id is not None:
        called = "/".join(part for part in (repo_id.split("/")[-1], subfolder) if part)
        return f"{called} (L0 {missed[1]:.3g})" if missed else called
    model = (hub_id(config.base_model) or "").split("/")[-1]
    place = string(mapping(config.training).get("portable_name")) or config.hook_point
    parts = (model, place, architecture_name(config), config.n_features, missed and f"l0_{missed[1]:.3g}")
    return "-".join(str(part) for part in parts if part)


def about_architecture(config: SAEConfig) -> str:
    """The first paragraph of the architecture's file, which says what it does and who described it."""
    module = sys.modules[class_of(architecture_name(config)).__module__]
    paragraph = (module.__doc__ or "").strip().split("\n\n")[0]
    return "" if module.__name__ == "__main__" else " ".join(paragraph.split())


def architecture_settings(config: SAEConfig) -> Rows:
    """The fields that an architecture adds to `SAEConfig`, with their values."""
    shared = {field.name for field in dataclasses.fields(SAEConfig)}
    own = [field.name for field in dataclasses.fields(config) if field.name not in {*shared, "source_models"}]
    return [(name, str(getattr(config, name))) for name in own]


def _compared(config: SAEConfig) -> list[tuple[str, str | None, str | None]]:
    """Of a crosscoder of several models the source, the model's id on the Hub, and its commit."""
    return [
        (source, hub_id(record.get("base_model")), record.get("base_model_revision"))
        for source, record in config.models_by_source.items()
    ]


def _loaded_with(config: SAEConfig) -> list[str]:
    """What the language model was loaded with that changes its activations, in short."""
    shown = []
    for name, value in (config.base_model_kwargs or {}).items():
        if name == "quantization_config" and isinstance(value, dict):
            bits = next((f" {bits} bit" for bits in (8, 4) if value.get(f"load_in_{bits}bit")), "")
            value = f"{value.get('quant_method', 'bitsandbytes')}{bits}"
        shown.append(f"{name}={value}")
    return shown


def left_out(config: SAEConfig) -> str:
    """Which tokens the SAE neither learned from nor was measured on."""
    return " and ".join(in_words(config.exclude_special_tokens, config.exclude_positions))


def measured(metrics: Mapping[str, Any], headline: bool) -> list[dict[str, Any]]:
    """The rows of a table of metrics: of the headline figures, with their baselines, or of all others."""
    notes, baselines = mapping(metrics.get("notes")), _baselines(metrics)
    return [
        {
            "metric": metric,
            "value": value,
            "note": notes.get(metric.name),
            "verdict": None if value is None else metric.verdict(value, metrics),
            "baselines": [number(figures.get(metric.name)) for figures in baselines.values()],
        }
        for metric in metrics_for(metrics)
        if metric.headline is headline and metric.name in metrics
        for value in [number(metrics[metric.name])]
    ]


def by_source(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """The figures of each source of a crosscoder, in the order of the rows of a table."""
    sources = {string(name) or "": mapping(figures) for name, figures in mapping(metrics.get("sources")).items()}
    names = [row["metric"].name for row in rows]
    return {source: [number(figures.get(name)) for name in names] for source, figures in sources.items()}


def missing(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Why figures are missing, each reason once, with the titles of the metrics that it is about."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["value"] is None and row["note"]:
            reasons.setdefault(row["note"], []).append(row["metric"].title)
    return list(reasons.items())


def other_loss(protocol: Mapping[str, Any]) -> str | None:
    """What CE is where it is not the next-token cross-entropy."""
    loss = protocol.get("loss")
    return str(loss) if loss and loss != NEXT_TOKEN else None


def baseline_titles(metrics: Mapping[str, Any]) -> list[str]:
    """What the baselines' columns are called, with the number of their tokens where that is another one."""
    return [
        f"{_BASELINES.get(name, (name,))[0]}{f', {components} components' if components else ''}"
        f"{f', on {tokens:,.0f} tokens' if tokens and tokens != metrics.get('n_tokens') else ''}"
        for name, figures in _baselines(metrics).items()
        for components, tokens in [(figures.get("components"), number(figures.get("n_tokens")))]
    ]


def baseline_meanings(metrics: Mapping[str, Any]) -> Rows:
    """What the baselines are."""
    return [_BASELINES[name] for name in _baselines(metrics) if name in _BASELINES]


def missed_l0(config: SAEConfig) -> tuple[float, float] | None:
    """The L0 that training was to steer to and the one it ended with, where they differ by more than a tenth."""
    training = mapping(config.training)
    wanted, became = number(training.get("target_l0")), number(training.get("final_l0"))
    if not wanted or became is None or abs(became / wanted - 1) <= 0.1:
        return None
    return wanted, became


def remarks(metrics: Mapping[str, Any], config: SAEConfig) -> list[str]:
    """One sentence for each headline figure that lies outside its range, or that a baseline reaches as well.

    Args:
        metrics: What was measured.
        config: The SAE's config, which says what was asked for.
    """
    sentences = []
    if missed := missed_l0(config):
        sentences.append(f"⚠ L0: training was to steer to {figure(missed[0])} and ended at {figure(missed[1])}.")
    if few := too_few_to_tell(metrics):
        sentences.append(f"dead features: {few}.")
    for row in measured(metrics, headline=True):
        metric, value = row["metric"], row["value"]
        if value is None:
            continue
        shown = metric.told(value, figure(value))
        if row["verdict"] == "outside":
            sentences.append(f"{metric.title}: {shown} is outside the healthy range, {metric.expected}.")
        if concern := metric.concern(value, metrics):
            sentences.append(f"⚠ {metric.title}: {shown} is {concern}.")
        if metric.higher_is_better:
            sentences += [
                f"⚠ {metric.title}: {figure(value)} is no better than the {figure(baseline)} of a baseline ({title})."
                for title, baseline in zip(baseline_titles(metrics), row["baselines"], strict=True)
                if baseline is not None and baseline >= value
            ]
    return sentences


def protocol_rows(protocol: Mapping[str, Any]) -> Rows:
    """How the figures were measured; keys that this version does not know keep their names."""
    told = {name: value for name, value in protocol.items() if name not in DEFAULTS or value != DEFAULTS[name]}
    return _rows(told, _PROTOCOL)


def training_rows(training: Mapping[str, Any]) -> Rows:
    """How the SAE was trained, its arguments and versions aside."""
    return _rows(training, _TRAINING)


def argument_rows(training: Mapping[str, Any]) -> Rows:
    """The training arguments that differ from their defaults and say something about the SAE."""
    arguments = mapping(training.get("arguments"))
    return [(name, _shown(name, value)) for name, value in sorted(arguments.items()) if name not in HOUSEKEEPING]


# A saved config comes back with its keys sorted, so no order here is that of a mapping.
def _baselines(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    baselines = mapping(metrics.get("baselines"))
    names = [*(name for name in _BASELINES if name in baselines), *sorted(baselines.keys() - _BASELINES.keys())]
    return {name: mapping(baselines[name]) for name in names}


def _rows(values: Mapping[str, Any], titles: Mapping[str, str]) -> Rows:
    names = [*titles, *sorted(values.keys() - titles.keys() - _NOT_ROWS)]
    return [(titles.get(name, name), _shown(name, values[name])) for name in names if values.get(name) is not None]


def _shown(name: str, value: Any) -> str:
    if name == "seconds" and (seconds := number(value)) is not None:
        return duration(seconds)
    if name == "final_l0" and (reached := number(value)) is not None:
        return figure(reached)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if name == "seed" else f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(name, part) for part in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_shown(key, inner)}" for key, inner in value.items())
    return without_folders(value) if isinstance(value, str) else str(value)
