"""The page itself: its template and scripts in `assets/`, and what all pages share, put together with the data."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hfsae.webpage import as_data, asset, render_html

_HERE = "hfsae.dashboard"
_SHARED = ("elements.js", "tokens.js")
# Joined in this order into one module, so that they share one scope and the page has no global names.
SCRIPTS = (
    "elements.js",
    "data.js",
    "labels.js",
    "search.js",
    "list.js",
    "tokens.js",
    "charts.js",
    "feature.js",
    "map.js",
    "prompt.js",
    "overview.js",
    "main.js",
)


def render_page(title: str, index: Mapping[str, Any], groups: Sequence[str], files_beside: bool = False) -> str:
    """The HTML of the dashboard.

    Args:
        title: What the page is called.
        index: What it holds of all features.
        groups: Packed groups of features, which are written into the page; none where they lie beside it.
        files_beside: Whether the page loads groups from files beside it.
    """
    scripts = (asset(name) if name in _SHARED else asset(name, _HERE) for name in SCRIPTS)
    style, script = asset("style.css"), "\n".join(scripts)
    return render_html(
        asset("page.html", _HERE),
        style,
        script,
        files_beside,
        title=title,
        index=Markup(as_data(index)),
        groups=[Markup(group) for group in groups],
    )
