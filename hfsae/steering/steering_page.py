"""The picture and the page of a steering report."""

import base64
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from hfsae.analysis import TokenTexts
from hfsae.hub.markdown import figure as in_digits
from hfsae.hub.plots import BLUE, GREEN, VERMILION, dress, save
from hfsae.steering.strength_grid import SteeringReport, StrengthEffect
from hfsae.storage import appearing_whole
from hfsae.webpage import asset, render_html

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USABLE = "#e8f3ee"


def steering_plot(report: SteeringReport, path: Path | io.BytesIO) -> None:
    """Draws token probability, perplexity and repetition over strength, the usable ranges in colour.

    Args:
        report: What was measured.
        path: The PNG file.
    """
    save(_drawn(report), path)  # type: ignore[arg-type]


def _drawn(report: SteeringReport) -> Figure:
    figure = Figure(figsize=(7, 6), layout="constrained", facecolor="white")
    rows = figure.subplots(3, 1, sharex=True)
    plain, limits = report.plain, report.limits
    _panel(rows[0], report, lambda one: one.token_probability, BLUE, "probability of its tokens")
    _panel(rows[1], report, lambda one: one.perplexity, VERMILION, "perplexity")
    _panel(rows[2], report, lambda one: one.repetition, GREEN, "repeated 4-grams")
    for height in (limits.gain * plain.token_probability, plain.token_probability / limits.gain):
        rows[0].axhline(height, color="black", linewidth=0.7, linestyle=":")
    rows[1].axhline(limits.perplexity * plain.perplexity, color="black", linewidth=0.7, linestyle=":")
    rows[2].axhline(limits.repetition + plain.repetition, color="black", linewidth=0.7, linestyle=":")
    for axes in rows[:2]:
        axes.set_yscale("log")
        _label(axes.yaxis, *axes.get_ylim())
    rows[2].set_ylim(bottom=0)
    rows[2].set_xlabel(f"strength (1 is an activation of {report.unit:.4g}); coloured: usable")
    figure.align_ylabels(list(rows))
    return figure


def _label(axis: Axis, low: float, high: float) -> None:
    """Labels of a logarithmic axis; over little more than a decade matplotlib's own stand on one another."""
    axis.set_minor_formatter(NullFormatter())
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(4))
        axis.set_major_formatter(StrMethodFormatter("{x:.4g}"))


def write_steering_page(
    report: SteeringReport,
    path: str | Path,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    title: str = "",
    text: str = "",
) -> Path:
    """Writes one page that opens offline: the picture, the figures, and a continuation at each strength.

    Args:
        report: What was measured.
        path: The file.
        tokenizer: Gives the text of the feature's tokens.
        title: What the SAE is called.
        text: What the measured text is called.

    Returns:
        The file's path.
    """
    picture = io.BytesIO()
    steering_plot(report, picture)
    texts = None if tokenizer is None else TokenTexts(tokenizer)
    style = asset("style.css") + asset("steering.css", "hfsae.steering")
    page = render_html(
        asset("steering.html", "hfsae.steering"),
        style,
        "",
        title=f"Feature {report.feature}" + (f" of {title}" if title else ""),
        tokens=[str(token) if texts is None else repr(texts([token])[0]) for token in report.token_ids],
        report=report,
        text=text,
        ranges=[said for said in (_range(report, False), _range(report, True)) if said],
        rows=[_row(report, effect) for effect in report.effects],
        picture=base64.b64encode(picture.getvalue()).decode(),
    )
    path = Path(path)
    with appearing_whole(path) as beside:
        beside.write_text(page, encoding="utf-8")
    return path


def usable_words(report: SteeringReport) -> str:
    """The usable ranges in a sentence."""
    said = [words for words in (_range(report, False), _range(report, True)) if words]
    return f"usable: {' and '.join(said)}" if said else "no strength of the grid is usable"


def _range(report: SteeringReport, negative: bool) -> str:
    found = report.usable_range(negative=negative)
    if found is None:
        return ""
    return f"{found[0]:g}" if found[0] == found[1] else f"{found[0]:g} to {found[1]:g}"


def _row(report: SteeringReport, effect: StrengthEffect) -> dict[str, Any]:
    numbers = (effect.strength, effect.token_probability, effect.perplexity, effect.kl, effect.repetition)
    shown = [in_digits(value) if math.isfinite(value) else "∞" for value in numbers]
    return {"numbers": shown, "sample": effect.sample or "", "usable": report.is_usable(effect)}


def _panel(
    axes: Axes, report: SteeringReport, value: Callable[[StrengthEffect], float], colour: str, label: str
) -> None:
    effects = [one for one in report.effects if math.isfinite(value(one))]
    axes.plot([one.strength for one in effects], [value(one) for one in effects], "o-", color=colour, markersize=4)
    for negative in (False, True):
        if found := report.usable_range(negative=negative):
            axes.axvspan(min(found) - 0.1, max(found) + 0.1, color=_USABLE, zorder=0)
    dress(axes)
    axes.set_ylabel(label)
