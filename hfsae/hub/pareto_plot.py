"""The picture of a sweep: active features against what is kept, one line an architecture and width."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from hfsae.evaluation.pareto import FRONT_METRICS, pareto_front
from hfsae.hub.plots import dress, save

# Okabe and Ito's, without yellow, which is hard to see on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", "--", ":", "-.")
_RING = "on the front"
_TITLES = {"loss_recovered": "loss recovered", "explained_variance": "explained variance"}


def pareto_plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws L0 against loss recovered and against explained variance, a row of panels for each hook point.

    Rows that differ in the seed alone are one point of the line, their mean; each is shown as a small dot. Rings mark
    the front.

    Args:
        rows: With `name`, `hook_point`, `architecture`, `n_features`, `setting` (equal for those that differ
            in the seed alone), `l0` and the metrics; those without figures are left out.
        path: Where the PNG goes.
    """
    places = list(dict.fromkeys(row["hook_point"] for row in rows))
    figure = Figure(figsize=(11, 0.9 + 3.7 * len(places)), layout="constrained", facecolor="white")
    panels = figure.subplots(len(places), len(FRONT_METRICS), squeeze=False)
    architectures = list(dict.fromkeys(row["architecture"] for row in rows))
    widths = sorted({row["n_features"] for row in rows})
    for place, across in zip(places, panels, strict=True):
        here = [row for row in rows if row["hook_point"] == place]
        for metric, axes in zip(FRONT_METRICS, across, strict=True):
            _panel(axes, here, metric, architectures, widths)
            if len(places) > 1:
                axes.set_title(place, loc="left", fontsize="medium")
    entries = {
        label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if entries:
        ring = entries.pop(_RING)  # comes last
        entries[_RING] = ring
        figure.legend(entries.values(), entries, loc="outside lower center", ncols=min(5, len(entries)), frameon=False)
    save(figure, path)


def _panel(
    axes: Axes, rows: Sequence[Mapping[str, Any]], metric: str, architectures: Sequence[str], widths: Sequence[int]
) -> None:
    dress(axes)
    drawn = [row for row in rows if row.get(metric) is not None and row["l0"]]
    for i, architecture in enumerate(architectures):
        for j, width in enumerate(widths):
            line = [row for row in drawn if (row["architecture"], row["n_features"]) == (architecture, width)]
            if not line:
                continue
            colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
            label = architecture if len(widths) == 1 else f"{architecture}, {width:,}"
            points = _means(line, metric)
            style = _STYLES[j % len(_STYLES)]
            axes.plot(*zip(*points, strict=True), style, color=colour, marker=marker, label=label, linewidth=1.5)
            if len(points) < len(line):
                axes.scatter([row["l0"] for row in line], [row[metric] for row in line], s=8, color=colour, alpha=0.5)
    front = {*pareto_front(drawn, metric)}
    ringed = [row for row in drawn if row["name"] in front]
    axes.scatter(
        [row["l0"] for row in ringed],
        [row[metric] for row in ringed],
        s=130,
        facecolors="none",
        edgecolors="#555555",
        linewidths=1.0,
        label=_RING,
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    if not drawn:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="#777777")
        axes.set_yticks([])
    axes.set_xlabel("L0 (features per token)")
    axes.set_ylabel(_TITLES[metric])


def _means(line: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """The points of a line: those that differ in the seed alone taken together."""
    ordered = sorted(line, key=lambda row: row["setting"])
    groups = [list(group) for _, group in groupby(ordered, key=lambda row: row["setting"])]
    return sorted((fmean(row["l0"] for row in group), fmean(row[metric] for row in group)) for group in groups)
