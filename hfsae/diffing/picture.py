"""The picture of a comparison: relative norms of all features, and what latent scaling says of those of one source."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hfsae.diffing.classes import DEAD, DECOUPLED, PARTLY, SHARED, SHRUNK, relative_norms
from hfsae.diffing.model_diff import ModelDiff
from hfsae.hub.plots import BLUE, GREEN, VERMILION, dress, save

_GREY, _PURPLE, _YELLOW = "#999999", "#CC79A7", "#E69F00"
_OF_CLASS = {SHARED: BLUE, PARTLY: _GREY, SHRUNK: _YELLOW, DECOUPLED: _PURPLE}
_OF_SOURCE = (GREEN, VERMILION)
_BINS = 40
# Ratios beyond are drawn at the border.
_LEAST_RATIO, _MOST_RATIO = -0.25, 1.5


def diff_plot(found: ModelDiff, path: Path) -> None:
    """Draws a comparison.

    With two sources, on the left how long a feature's row in the second one is, as ½ (1 + (‖d₂‖ − ‖d₁‖) / max), and on
    the right ν^ε and ν^r of features that norms give to one source. With more, how many features each class has.

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
    axes.legend(frameon=False, fontsize="small")


def _counts(axes: Axes, found: ModelDiff) -> None:
    counts = {kind: number for kind, number in found.counts().items() if kind != DEAD}
    bars = axes.barh(list(counts)[::-1], list(counts.values())[::-1], color=list(_colours(found).values())[::-1])
    axes.bar_label(bars, padding=3)
    axes.set_xlabel("features")


def _ratios(axes: Axes, found: ModelDiff) -> None:
    """The largest ratio of the other sources, of features that one source has by norms."""
    kinds, by_norms = np.array(found.classes), np.array(found.by_norms)
    others = relative_norms(found.norms).numpy() < 1
    in_error, in_others = (
        np.where(others, ratio.numpy(), -np.inf).max(1) for ratio in (found.error_ratios, found.reconstruction_ratios)
    )
    of_one = np.isin(by_norms, [f"{source}-only" for source in found.sources])
    for kind, colour in _colours(found).items():
        mine = of_one & (kinds == kind) & np.isfinite(in_error) & np.isfinite(in_others)
        if mine.any():
            x, y = (np.clip(values[mine], _LEAST_RATIO, _MOST_RATIO) for values in (in_error, in_others))
            axes.scatter(x, y, s=9, color=colour, label=kind, alpha=0.7, linewidths=0)
    axes.axvline(found.thresholds.error, color="black", linewidth=0.7, linestyle=":")
    axes.axhline(found.thresholds.reconstruction, color="black", linewidth=0.7, linestyle=":")
    axes.set_xlim(_LEAST_RATIO - 0.05, _MOST_RATIO + 0.05)
    axes.set_ylim(_LEAST_RATIO - 0.05, _MOST_RATIO + 0.05)
    axes.set_xlabel("ν of the error of the other source")
    axes.set_ylabel("ν of its reconstruction")
