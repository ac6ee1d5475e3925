"""The picture of a set: what the model loses with all SAEs in place, and how good each of them is by itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hfsae.evaluation.saved_set import SET_FILE, SET_PLOT, read_set, set_names
from hfsae.hub.kinds import mapping, number
from hfsae.hub.plots import BLUE, GREEN, VERMILION, dress, save
from hfsae.loading import load_config
from hfsae.sae_folders import CONFIG_FILE
from hfsae.saving import files_at_once

_RUNS = {
    "ce_clean": "model",
    "ce_with_errors": "all, with errors",
    "ce_spliced": "all in place",
    "ce_mean": "means",
    "ce_zero": "zeros",
}
_EACH = {
    "explained_variance": "explained variance",
    "loss_recovered": "loss recovered",
    "dead_fraction": "dead features",
}


def set_plot(together: Mapping[str, Any], each: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws cross-entropies of the model with all SAEs in place, and figures of each SAE alone.

    Args:
        together: What `evaluate_together` measured.
        each: What was measured of each SAE, by name.
        path: The PNG file.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained", facecolor="white")
    whole, alone = figure.subplots(1, 2, width_ratios=(1, 1.4))
    nats = {title: value for name, title in _RUNS.items() if (value := number(together.get(name))) is not None}
    bars = whole.barh(list(nats)[::-1], list(nats.values())[::-1], color=BLUE)
    whole.bar_label(bars, fmt="%.3g", padding=3)
    whole.set_xlabel("cross-entropy (nats)")
    whole.set_xlim(0, 1.15 * max(nats.values(), default=1.0))
    for (name, title), colour in zip(_EACH.items(), (BLUE, GREEN, VERMILION), strict=True):
        values = [number(metrics.get(name)) for metrics in each.values()]
        alone.plot(
            list(each),
            [float("nan") if value is None else value for value in values],
            marker="o",
            color=colour,
            label=title,
        )
    alone.set_ylim(0, 1.02)
    alone.legend(frameon=False)
    alone.tick_params(axis="x", labelrotation=90 if len(each) > 8 else 0)
    for axes in (whole, alone):
        dress(axes)
    save(figure, path)


def draw_set(folder: Path) -> None:
    """Draws the picture of the set in a folder beside its record; nothing where there is no record."""
    record = read_set(folder / SET_FILE)
    if record is None:
        (folder / SET_PLOT).unlink(missing_ok=True)
        return
    there = [name for name in set_names(record) if (folder / name / CONFIG_FILE).is_file()]
    each = {name: mapping(load_config(folder, subfolder=name).metrics) for name in there}
    with files_at_once(folder) as beside:
        set_plot(record, each, beside / SET_PLOT)
