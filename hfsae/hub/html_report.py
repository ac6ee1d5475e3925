"""A page about a training run that opens offline: figures against healthy ranges, curves, densities, features.

Everything is inside of one file; nothing is fetched and no script runs.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined, Template

from hfsae.autoencoder.registry import architecture_name
from hfsae.configuration import SAEConfig
from hfsae.evaluation.metrics import METRICS
from hfsae.hub import sections
from hfsae.hub.card import FEATURE_DENSITY, TRAINING_CURVE
from hfsae.hub.hub_ids import without_folders
from hfsae.hub.kinds import number
from hfsae.hub.markdown import figure
from hfsae.saving import files_at_once

REPORT_FILE = "report.html"

_PICTURES = {TRAINING_CURVE: "Training", FEATURE_DENSITY: "How often features fire"}


class ShownToken(NamedTuple):
    """A token of an example: its text, the feature's activation on it, and that as a share of its largest."""

    text: str
    activation: float
    strength: float


@dataclass(frozen=True)
class ShownFeature:
    """A feature as the page shows it.

    Args:
        index: Which one.
        density: On which share of tokens it fires.
        maximum: Its largest activation.
        promoted: Tokens whose logits it raises most.
        contexts: Where it fires most strongly, token by token.
        left_out_note: What is said of the tokens that `promoted` leaves out.
    """

    index: int
    density: float
    maximum: float
    promoted: list[str] = field(default_factory=list)
    contexts: list[list[ShownToken]] = field(default_factory=list)
    left_out_note: str = ""


def write_report(folder: Path, config: SAEConfig, features: Sequence[ShownFeature] = ()) -> Path:
    """Writes `report.html` beside a trained SAE, its card and its plots.

    Args:
        folder: Where they are.
        config: The SAE's config, with what was measured and how it was trained.
        features: Features to show, with examples.

    Returns:
        The page's path.
    """
    metrics, training = config.metrics or {}, config.training or {}
    headline = [metric for metric in METRICS if metric.headline]
    parts = [
        (name, [number(figures.get(metric.name)) for metric in headline])
        for name, figures in (metrics.get("parts") or {}).items()
    ]
    values = {
        "title": f"{architecture_name(config)} SAE, {config.n_features:,} features",
        "about": f"reads {config.hook_point or 'activations of one’s own'}"
        + (f", writes {config.target_hook_point}" if config.is_transcoder else "")
        + (f" of {without_folders(config.base_model)}" if config.base_model else ""),
        "remarks": sections.remarks(metrics, config),
        "measured": [*sections.measured(metrics, headline=True), *sections.measured(metrics, headline=False)],
        "baselines": sections.baseline_titles(metrics),
        "parts": sorted(parts, key=lambda part: metrics["parts"][part[0]]["n_features"]),
        "part_titles": [metric.title for metric in headline],
        "pictures": [
            {"title": title, "content": base64.b64encode((folder / name).read_bytes()).decode()}
            for name, title in _PICTURES.items()
            if (folder / name).is_file()
        ],
        "features": list(features),
        "tables": [
            ("Trained", sections.training_rows(training)),
            ("Arguments that differ from their defaults", sections.argument_rows(training)),
            ("How it was measured", sections.protocol_rows(metrics.get("protocol") or {})),
        ],
        "figure": figure,
    }
    with files_at_once(folder) as beside:
        (beside / REPORT_FILE).write_text(_compiled().render(values), encoding="utf-8")
    return folder / REPORT_FILE


@cache
def _compiled() -> Template:
    """The page's template, compiled once."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(
        files("hfsae.model_cards").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
