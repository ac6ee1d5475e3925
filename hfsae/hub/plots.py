"""The pictures on a card: the course of training, and how often features fire.

Drawn through matplotlib's objects alone, so that a user's figures and settings stay as they are. Colours are Okabe and
Ito's, which colour-blind readers can tell apart.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"

_DPI = 150
_UNITS = ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"), (1, ""))
_FEW_POINTS = 30  # a curve of so few shows where they are
_SETTLING = 0.05  # the first steps may lie far off; limits of an axis are taken from what follows


def read_log(path: Path) -> list[dict[str, Any]]:
    """The logged steps of a run in their order, each once; empty where there is no log.

    A run that was resumed has logged some steps twice, of which the later counts; one that was killed may have left
    half a line.
    """
    steps: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and "step" in entry and "tokens" in entry:
            steps[entry["step"]] = entry
    return [steps[step] for step in sorted(steps)]


def training_curve(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws explained variance, L0 and the share of dormant features over the tokens of training.

    Args:
        log: Logged steps, with `tokens` and whichever of the metrics there are. Without explained variance the MSE
            is drawn.
        path: Where the PNG goes.
    """
    # Logs of earlier versions called dormant what they called dead elsewhere.
    log = [
        {"dormant_fraction": entry["dead_fraction"], **entry} if "dead_fraction" in entry else entry for entry in log
    ]
    fit = "explained_variance" if any("explained_variance" in entry for entry in log) else "mse"
    panels = [
        (fit, {"explained_variance": "explained variance", "mse": "MSE (model units²)"}[fit], BLUE),
        ("l0", "L0 (features per token)", VERMILION),
        ("dormant_fraction", "dormant features", GREEN),
    ]
    panels = [panel for panel in panels if any(np.isfinite(entry.get(panel[0], np.nan)) for entry in log)]
    figure = Figure(figsize=(7, 1.2 + 1.55 * len(panels)), layout="constrained", facecolor="white")
    tokens = np.array([entry["tokens"] for entry in log], dtype=float)
    scale, unit = next((size, name) for size, name in _UNITS if tokens[-1] >= size or size == 1)
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, label, colour) in zip(rows, panels, strict=True):
        values = np.array([entry.get(name, np.nan) for entry in log], dtype=float)
        marker = "o" if len(log) <= _FEW_POINTS else None
        (line,) = axes.plot(tokens / scale, values, color=colour, linewidth=1.6, marker=marker, markersize=4)
        dress(axes)
        axes.set_ylabel(label)
        _limit(axes, name, values)
        lowest, highest = axes.get_ylim()
        # Whole marks at the border, but no first steps far outside of it, which would leave the axes no room.
        line.set_clip_on(bool(((values < lowest) | (values > highest)).any()))
        _name_last(axes, name, values, colour)
    rows[-1].set_xlabel(f"tokens trained on ({unit})" if unit else "tokens trained on")
    rows[-1].set_xlim(0, tokens[-1] / scale)
    figure.align_ylabels(list(rows))
    save(figure, path)


def elided(name: str, most: int) -> str:
    """A name whose middle is left out where it is longer than so many characters."""
    if len(name) <= most:
        return name
    front = most // 2
    return f"{name[:front]}…{name[front + 1 - most :]}"


def feature_density(density: Mapping[str, Any], path: Path) -> None:
    """Draws the histogram of how often features fire, with the silent ones apart.

    Args:
        density: `log10_edges` of the bins, in log10 of the share of tokens; `counts` of features; `never`, how many
            fired on no token.
        path: Where the PNG goes.

    Raises:
        ValueError: If there is not one edge more than counts.
    """
    edges, counts = np.asarray(density["log10_edges"], dtype=float), np.asarray(density["counts"], dtype=float)
    if len(edges) != len(counts) + 1 or not len(counts):
        raise ValueError(f"a histogram of {len(counts)} counts needs one edge more, got {len(edges)}.")
    never = int(density["never"])
    filled = np.flatnonzero(counts)
    first, last = (filled[0], filled[-1]) if len(filled) else (0, len(counts) - 1)
    edges, counts = edges[first : last + 2], counts[first : last + 1]
    figure = Figure(figsize=(7, 3.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.85)
    dress(axes)
    total = counts.sum() + never
    axes.set_title(f"{never:,} of {total:,.0f} features never fired", loc="right", fontsize="medium")
    axes.set_xlabel("share of tokens on which a feature fires")
    axes.set_ylabel("features")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda power, _: f"$10^{{{power:g}}}$"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    save(figure, path)


def _limit(axes: Axes, name: str, values: np.ndarray) -> None:
    """Scales the upright axis to what came after the first steps."""
    settled = values[int(len(values) * _SETTLING) :]
    settled = settled[np.isfinite(settled)]
    if not len(settled):
        return
    low, high = settled.min(), settled.max()
    if name == "dormant_fraction":
        axes.set_ylim(0, max(high * 1.1, 0.01))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if high > 0.04 else 1))
    elif name == "explained_variance":
        axes.set_ylim(low - 0.05 * (1 - low), 1)
    elif low > 0 and high > 10 * low:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, high * 1.15 or 1)


def _name_last(axes: Axes, name: str, values: np.ndarray, colour: str) -> None:
    """Writes the last value beside the end of its line."""
    finite = values[np.isfinite(values)]
    if len(finite):
        label = f"{finite[-1]:.1%}" if name == "dormant_fraction" else f"{finite[-1]:.3g}"
        place = {"xy": (1, finite[-1]), "xycoords": axes.get_yaxis_transform()}
        axes.annotate(label, **place, xytext=(4, 0), textcoords="offset points", va="center", color=colour)


def dress(axes: Axes) -> None:
    """White, with faint lines across and no frame."""
    axes.set_facecolor("white")
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG whose bytes depend on nothing but what is drawn."""
    figure.set_dpi(_DPI)
    # `savefig` would draw twice, the first time for the layout alone: the bytes are the same.
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
