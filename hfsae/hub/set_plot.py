"""The picture of a set: what the model loses with all SAEs in place, and how good each of them is by itself."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from hfsae.evaluation.saved_set import SET_FILE, SET_PLOT, read_set, set_names
from hfsae.hub.kinds import mapping, number
from hfsae.hub.plots import BLUE, GREEN, VERMILION, dress, elided, save
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
# Characters of names that stand side by side, of one by itself, and of what all have in common before and behind it.
_BESIDE, _ALONE, _COMMON = 54, 24, 28
_HEIGHT, _OF_CHARACTER, _OF_NAME = 3.2, 0.075, 0.16  # inches


def set_plot(together: Mapping[str, Any], each: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws cross-entropies of the model with all SAEs in place, and figures of each SAE alone.

    Args:
        together: What `evaluate_together` measured.
        each: What was measured of each SAE, by name.
        path: The PNG file.
    """
    save(set_figure(together, each), path)


def set_figure(together: Mapping[str, Any], each: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The figure that `set_plot` writes. It grows with the names, so that these take no room from the axes."""
    names, common = _short(list(each))
    upright = sum(map(len, names)) + len(names) > _BESIDE
    height = _HEIGHT + _OF_CHARACTER * max(map(len, names), default=0) * upright
    widths = (3.75, max(5.25, 0.6 + _OF_NAME * len(names)))
    figure = Figure(figsize=(sum(widths), height), layout="constrained", facecolor="white")
    whole, alone = figure.subplots(1, 2, width_ratios=widths)
    nats = {title: value for name, title in _RUNS.items() if (value := number(together.get(name))) is not None}
    bars = whole.barh(list(nats)[::-1], list(nats.values())[::-1], color=BLUE)
    whole.bar_label(bars, fmt="%.3g", padding=3)
    whole.set_xlabel("cross-entropy (nats)")
    whole.set_xlim(0, 1.15 * max(nats.values(), default=1.0))
    for (name, title), colour in zip(_EACH.items(), (BLUE, GREEN, VERMILION), strict=True):
        values = [number(metrics.get(name)) for metrics in each.values()]
        alone.plot(
            range(len(names)),
            [float("nan") if value is None else value for value in values],
            marker="o",
            color=colour,
            label=title,
        )
    alone.set_ylim(0, 1.02)
    alone.legend(frameon=False)
    alone.set_xticks(range(len(names)), names, rotation=90 if upright else 0, fontsize=8 if upright else None)
    alone.set_xlabel(common, fontsize=8)
    for axes in (whole, alone):
        dress(axes)
    return figure


def _short(names: Sequence[str]) -> tuple[list[str], str]:
    """Names for an axis, and what all of them have in common, with a star for what is each one's own.

    Where names are short they stay.
    """
    if max(map(len, names), default=0) <= _ALONE // 2 or len(names) < 2:
        return [elided(name, _ALONE) for name in names], ""
    begin = re.sub(r"[^./-]*$", "", os.path.commonprefix(names))
    own = [name[len(begin) :] for name in names]
    end = re.sub(r"^[^./-]*", "", os.path.commonprefix([name[::-1] for name in own])[::-1])
    if any(len(name) <= len(end) for name in own):
        end = ""
    return [
        elided(name[: len(name) - len(end)], _ALONE) for name in own
    ], f"{elided(begin, _COMMON)}*{elided(end, _COMMON)}"


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
