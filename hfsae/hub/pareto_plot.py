"""The picture of a sweep: active features against what is kept, one line an architecture and width."""

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from statistics import fmean, median_low
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from hfsae.evaluation.pareto import FRONT_METRICS, pareto_front
from hfsae.hub.plots import dress, elided, save

# Okabe and Ito's, without yellow, which is hard to see on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_STYLES = ("-", "--", ":", "-.")
_RING = "on the front"
_MOST_TICKS, _MOST_NAMED_LINES = 12, 3
_SHORT, _LONGEST = 8, 28  # characters of a label
_NEAR = 1.3  # values whose ratio is less share a tick
_MARKER = 4  # half of a point's mark, in pixels
_TITLES = {"loss_recovered": "loss recovered", "explained_variance": "explained variance"}


def pareto_plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws L0 against loss recovered and against explained variance, a row of panels for each hook point.

    Rows that differ in the seed alone are one point of the line, their mean; each is shown as a small dot. A point is
    labelled with what its name says beside the legend; among many lines those on the front alone are. A label that
    finds no room beside its point is left out, the front's last. Rings mark the front. L0 is on a logarithmic axis,
    which has its ticks where points are.

    Args:
        rows: With `name`, `hook_point`, `architecture`, `n_features`, `setting` (equal where the seed alone differs),
            `l0` and the metrics; rows without figures are left out.
        path: Where the PNG goes.
    """
    save(pareto_figure(rows), path)


def pareto_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The figure that `pareto_plot` writes."""
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
    figure.draw_without_rendering()  # how large a label is, and where it lies, is known from then on
    for axes in panels.flat:
        _keep_apart(axes)
    return figure


def _panel(
    axes: Axes, rows: Sequence[Mapping[str, Any]], metric: str, architectures: Sequence[str], widths: Sequence[int]
) -> None:
    dress(axes)
    drawn = [row for row in rows if row.get(metric) is not None and row["l0"]]
    front = {*pareto_front(drawn, metric)}
    lines = {(row["architecture"], row["n_features"]) for row in drawn}
    named = {row["setting"] for row in drawn if row["name"] in front or len(lines) <= _MOST_NAMED_LINES}
    parts = [{*row["setting"].split("-")} for row in drawn]
    told = set.intersection(*parts) if len({row["setting"] for row in drawn}) > 1 else set()
    for i, architecture in enumerate(architectures):
        for j, width in enumerate(widths):
            line = [row for row in drawn if (row["architecture"], row["n_features"]) == (architecture, width)]
            if not line:
                continue
            colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
            label = architecture if len(widths) == 1 else f"{architecture}, {width:,}"
            points = _means(line, metric)
            style = _STYLES[j % len(_STYLES)]
            l0, values = [point.l0 for point in points], [point.value for point in points]
            axes.plot(l0, values, style, color=colour, marker=marker, label=label, linewidth=1.5)
            for point in points:
                if point.setting in named:
                    legend = {architecture, str(width), f"{line[0].get('expansion_factor', 0):g}x"}
                    late = point.l0**2 > min(row["l0"] for row in drawn) * max(row["l0"] for row in drawn)
                    first = any(row["name"] in front for row in line if row["setting"] == point.setting)
                    _label(axes, point, told | legend, colour, above=(i + j) % 2 == 0, late=late, first=first)
            if len(points) < len(line):
                axes.scatter([row["l0"] for row in line], [row[metric] for row in line], s=8, color=colour, alpha=0.5)
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
    ticks = _ticks([row["l0"] for row in drawn])
    axes.xaxis.set_major_locator(FixedLocator(ticks) if 0 < len(ticks) <= _MOST_TICKS else LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.1, y=0.12)
    if not drawn:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="#777777")
        axes.set_yticks([])
    axes.set_xlabel("L0 (features per token, log scale)")
    axes.set_ylabel(_TITLES[metric])


class _Point(NamedTuple):
    """A point of a line: the SAEs of one setting, taken together."""

    l0: float
    value: float
    setting: str


def _means(line: Sequence[Mapping[str, Any]], metric: str) -> list[_Point]:
    """The points of a line: runs that differ in the seed alone are taken together."""
    ordered = sorted(line, key=lambda row: row["setting"])
    groups = [(setting, list(group)) for setting, group in groupby(ordered, key=lambda row: row["setting"])]
    return sorted(
        _Point(fmean(row["l0"] for row in group), fmean(row[metric] for row in group), setting)
        for setting, group in groups
    )


def _label(
    axes: Axes, point: _Point, told: Collection[str], colour: str, *, above: bool, late: bool, first: bool
) -> None:
    """Writes what a setting says beside the legend and beside what all settings of the panel say.

    A long one stands towards the middle of the panel. It takes no room from the axes. One that is `first` keeps its
    place before others.
    """
    text = elided("-".join(part for part in point.setting.split("-") if part not in told), _LONGEST)
    left = late if len(text) > _SHORT else above
    where: dict[str, Any] = {"textcoords": "offset points", "color": colour, "fontsize": 8}
    label = axes.annotate(text, (point.l0, point.value), (0, 0), zorder=4 if first else 3, **where)
    label.set_in_layout(False)
    label.set_path_effects([withStroke(linewidth=2, foreground="white")])  # lines run behind it
    _put(label, left, above)


def _put(label: Annotation, left: bool, above: bool) -> None:
    """Puts a label on one side of its point."""
    label.set(ha="right" if left else "left", va="bottom" if above else "top")
    label.set_position((-6 if left else 6, 5 if above else -5))


def _keep_apart(axes: Axes) -> None:
    """Moves a label that lies on another, or on a point, to another side of its own; leaves out what has no room."""
    panel = axes.get_window_extent()
    points = [axes.transData.transform(line.get_xydata()) for line in axes.lines]
    taken = [Bbox.from_bounds(x, y, 0, 0).padded(_MARKER) for of_line in points for x, y in of_line]
    labels = [label for label in axes.texts if isinstance(label, Annotation)]
    for label in sorted(labels, key=lambda label: -label.get_zorder()):
        own = label.get_horizontalalignment() == "right", label.get_verticalalignment() == "bottom"
        for flipped in product((False, True), repeat=2):
            _put(label, own[0] ^ flipped[0], own[1] ^ flipped[1])
            box = label.get_window_extent()
            is_inside = panel.x0 <= box.x0 and box.x1 <= panel.x1
            if is_inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
        else:
            label.remove()


def _ticks(values: Sequence[float]) -> list[float]:
    """Where points are: a tick for each group of values that lie near each other, at the middle one."""
    groups: list[list[float]] = []
    for value in sorted(values):
        if groups and value <= _NEAR * groups[-1][0]:
            groups[-1].append(value)
        else:
            groups.append([value])
    return [median_low(group) for group in groups]
