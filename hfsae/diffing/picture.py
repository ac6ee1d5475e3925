"""The picture of a comparison: relative norms of all features, and what latent scaling says of those of one source."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfsae.diffing.classes import DEAD, DECOUPLED, PARTLY, SHARED, SHRUNK, only, relative_norms
from hfsae.diffing.model_diff import ModelDiff
from hfsae.hub.plots import BLUE, GREEN, VERMILION, dress, save

_GREY, _PURPLE, _YELLOW = "#999999", "#CC79A7", "#E69F00"
_OF_CLASS = {SHARED: BLUE, PARTLY: _GREY, SHRUNK: _YELLOW, DECOUPLED: _PURPLE}
_OF_SOURCE = (GREEN, VERMILION)
_BINS = 40
# On half a white, so that words can be read and what lies behind them is seen.
_LEGEND = {"fontsize": "small", "framealpha": 0.6, "edgecolor": "none"}
# Ratios beyond are drawn at the border.
_LEAST_RATIO, _MOST_RATIO = -0.25, 1.5


def diff_plot(found: ModelDiff, path: Path) -> None:
    """Draws a comparison.

    With two sources the left side shows how long a feature's row in the second one is, as ½ (1 + (‖d₂‖ − ‖d₁‖) / max).
    The right side shows ν^ε and ν^r of the source in which each feature is weaker. With more, how many features each
    class has.

    Args:
        found: The comparison.
        path: The PNG file.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained", facecolor="white")
    two = len(found.sources) == 2
    left, right = figure.subplots(1, 2)
    _norms(left, found) if two else _counts(left, found)
    _ratios(right, found)
    for axes in (left, right):
        dress(axes)
    save(figure, path)


def _colours(found: ModelDiff) -> dict[str, str]:
    own = {f"{source}-only": _OF_SOURCE[place % len(_OF_SOURCE)] for place, source in enumerate(found.sources)}
    return {kind: {**_OF_CLASS, **own}[kind] for kind in found.kinds if kind != DEAD}


def _norms(axes: Axes, found: ModelDiff) -> None:
    first, second = relative_norms(found.norms).T.numpy()
    place, kinds = (1 + second - first) / 2, np.array(found.classes)
    shown = {kind: colour for kind, colour in _colours(found).items() if (kinds == kind).any()}
    axes.hist(
        [place[kinds == kind] for kind in shown],
        bins=_BINS,
        range=(0, 1),
        stacked=True,
        color=list(shown.values()),
        label=[f"{kind} ({int((kinds == kind).sum()):,})" for kind in shown],
    )
    axes.set_yscale("symlog", linthresh=10)
    for end in (found.thresholds.absent / 2, 1 - found.thresholds.absent / 2):
        axes.axvline(end, color="black", linewidth=0.7, linestyle=":")
    axes.set_xlabel(f"decoder norm: {found.sources[0]} alone (0) to {found.sources[1]} alone (1)")
    axes.set_ylabel("features")
    axes.legend(**_LEGEND)


def _counts(axes: Axes, found: ModelDiff) -> None:
    counts = {kind: number for kind, number in found.counts().items() if kind != DEAD}
    bars = axes.barh(list(counts)[::-1], list(counts.values())[::-1], color=list(_colours(found).values())[::-1])
    axes.bar_label(bars, padding=3)
    axes.set_xlabel("features")


def _ratios(axes: Axes, found: ModelDiff) -> None:
    """ν of the source in which each feature is weaker, to the one in whose error it is strongest; of all features."""
    if found.scaling is None:
        return
    error, reconstruction = found.scaling.error.nan_to_num(nan=0.0), found.scaling.reconstruction.nan_to_num(nan=0.0)
    order = error.argsort(1, descending=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = (
            (scales.gather(1, order[:, 1:2]) / scales.gather(1, order[:, :1]))[:, 0].numpy()
            for scales in (error, reconstruction)
        )
    alone = set(map(only, found.sources))
    kinds = np.array(
        [scaled if scaled in alone else kind for kind, scaled in zip(found.classes, found.by_scaling, strict=True)]
    )
    for kind, colour in _colours(found).items():
        mine = (kinds == kind) & np.isfinite(x) & np.isfinite(y)
        if mine.any():
            shown = (np.clip(values[mine], _LEAST_RATIO, _MOST_RATIO) for values in (x, y))
            label = f"{kind} by scaling ({int(mine.sum())})" if kind in alone else None
            axes.scatter(*shown, s=9, color=colour, label=label, alpha=0.7, linewidths=0)
    axes.axvline(found.thresholds.error, color="black", linewidth=0.7, linestyle=":")
    axes.axhline(found.thresholds.reconstruction, color="black", linewidth=0.7, linestyle=":")
    axes.set_xlim(_LEAST_RATIO - 0.05, _MOST_RATIO + 0.05)
    axes.set_ylim(_LEAST_RATIO - 0.05, _MOST_RATIO + 0.05)
    axes.set_xlabel("ν of the error of the weaker source")
    axes.set_ylabel("ν of its reconstruction")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(**_LEGEND, loc="lower right")
