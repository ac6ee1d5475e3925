"""A plain table of what was measured, against where it should lie and against the baselines."""

from collections.abc import Mapping
from typing import Any

from hfsae.evaluation.metrics import METRICS, Metric, metrics_for, too_few_to_tell, warnings_for

_MARKS = {"warning": "!", "outside": "~", "healthy": "", None: ""}
_BASELINES = {"untrained": "untrained", "pca": "PCA"}


def report(metrics: Mapping[str, Any], title: str | None = None) -> str:
    """Lays metrics out for a terminal.

    Args:
        metrics: What `evaluate_sae` returned.
        title: A first line.

    Returns:
        A table with a row a metric: `!` marks what deserves a warning, `~` what is outside the healthy range. Then the
        warnings in words, why figures are missing, and what was measured on.

    Example:
        >>> print(report({"l0": 120.0, "explained_variance": 0.97, "n_tokens": 4096}))
        metric                measured      healthy
        L0                         120 ~   10 – 100
        explained variance       0.970       > 0.95
        <BLANKLINE>
        measured on 4,096 tokens
    """
    known = metrics.get("baselines") or {}
    baselines = {name: known[name] for name in _BASELINES if name in known}
    shown = [metric for metric in metrics_for(metrics) if metric.name in metrics]
    lines = [_row("metric", "measured", "", "healthy", [_heading(name, baselines[name]) for name in baselines])]
    for metric in shown:
        value = metrics[metric.name]
        others = [_figure(metric, figures.get(metric.name)) for figures in baselines.values()]
        mark = "" if value is None else _MARKS[metric.verdict(value, metrics)]
        lines.append(_row(metric.title, _figure(metric, value), mark, metric.expected, others))
    lines += [_part(f"{name} features", figures) for name, figures in (metrics.get("parts") or {}).items()]
    lines += [_part(name, figures) for name, figures in (metrics.get("sources") or {}).items()]
    lines.append("")
    lines += [f"! {warning}" for warning in warnings_for(metrics)]
    if few := too_few_to_tell(metrics):
        lines.append(f"- dead features: {few}")
    lines += [f"- {', '.join(names)}: {reason}" for reason, names in by_reason(metrics).items()]
    lines += [
        f"- {_heading(name, figures)}: of the record, on {figures['n_tokens']:,} tokens"
        for name, figures in baselines.items()
        if figures.get("n_tokens", metrics.get("n_tokens")) != metrics.get("n_tokens")
    ]
    lines.append(_text(metrics))
    return "\n".join(([title] if title else []) + lines)


SET_TITLES = {
    "ce_clean": "CE of the model",
    "ce_spliced": "CE with all in place",
    "ce_increase": "CE increase",
    "ce_zero": "CE, 0 in all places",
    "ce_mean": "CE, means in all places",
    "loss_recovered": "loss recovered",
    "loss_recovered_mean": "loss recovered (mean)",
    "kl": "KL from the model",
    "l0": "active features, all SAEs",
    "ce_with_errors": "CE, errors added back",
    "kl_with_errors": "KL, errors added back",
    "with_errors_difference": "difference then",
}
"""What `evaluate_together` measures, and how tables call it."""


def report_together(figures: Mapping[str, Any]) -> str:
    """Lays out for a terminal what `evaluate_together` returned.

    Example:
        >>> print(report_together({"n_saes": 12, "ce_clean": 3.25, "ce_increase": None, "notes": {}}))
        all 12 SAEs in place at once
        CE of the model               3.25
        CE increase                      –
    """
    lines = [f"all {figures['n_saes']} SAEs in place at once"]
    for name, title in SET_TITLES.items():
        if name in figures:
            value = figures[name]
            lines.append(f"{title:<26} {'–' if value is None else format(value, '.4g'):>7}")
    lines += [f"- {', '.join(names)}: {reason}" for reason, names in by_reason(figures).items()]
    return "\n".join(lines + ([_text(figures)] if "n_tokens" in figures else []))


def headlines(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The few figures that say most, by their titles; a dash where one was not measured."""
    return {metric.title: _figure(metric, metrics.get(metric.name)) for metric in METRICS if metric.headline}


def by_reason(metrics: Mapping[str, Any]) -> dict[str, list[str]]:
    """Why figures are missing, each reason once, with the names of the metrics that it is about."""
    reasons: dict[str, list[str]] = {}
    for name, reason in (metrics.get("notes") or {}).items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def _part(name: str, figures: Mapping[str, Any]) -> str:
    """A line for a smaller SAE inside of the one that was measured, or one source of it: its headline figures."""
    shown = (metric for metric in METRICS if metric.headline and figures.get(metric.name) is not None)
    return f"{name:<21} " + ", ".join(f"{m.title} {_figure(m, figures[m.name])}" for m in shown)


def _row(title: str, value: str, mark: str, healthy: str, others: list[str]) -> str:
    return f"{title:<21} {value:>8} {mark:1} {healthy:>10}{''.join(f'{other:>12}' for other in others)}".rstrip()


def _heading(name: str, figures: Mapping[str, Any]) -> str:
    return f"{_BASELINES[name]}-{figures['components']}" if "components" in figures else _BASELINES[name]


def _figure(metric: Metric, value: float | None) -> str:
    if value is None:
        return "–"
    magnitude = abs(value)
    if magnitude >= 100:
        text = f"{value:.4g}"
    elif 0 < magnitude < 1e-3:
        text = f"{value:.3g}"
    else:
        text = f"{value:.{2 if magnitude >= 10 else 3}f}"
    return metric.told(value, text)


def _text(metrics: Mapping[str, Any]) -> str:
    protocol = metrics.get("protocol") or {}
    source = ", ".join(part for part in (protocol.get("dataset"), protocol.get("split")) if part)
    text = f"measured on {metrics['n_tokens']:,} tokens" if "n_tokens" in metrics else "measured"
    text += f" of {source}" if source else ""
    return text + (f", left out: {protocol['left_out']}" if protocol.get("left_out") else "")
