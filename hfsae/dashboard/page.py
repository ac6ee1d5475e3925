"""The page itself: its template, style and scripts in `assets/`, put together with the data.

Nothing of the data can become markup: JSON stands in a script element that is no script, every `<` of it written as
`\\u003c`, and the page shows it as text. A content security policy lets the page run these scripts, by their digests,
and fetch nothing.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

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
    style, script = asset("style.css"), "\n".join(asset(name) for name in SCRIPTS)
    return template(asset("page.html")).render(
        title=title,
        policy=policy(style, script, files_beside),
        style=Markup(style),
        script=Markup(script),
        index=Markup(as_data(index)),
        groups=[Markup(group) for group in groups],
    )


def as_data(content: Any) -> str:
    """JSON that may stand in a script element: it holds no `<`, and nothing that is not ASCII."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def template(source: str) -> Template:
    """A page's template, in which what is filled in is escaped, and nothing may be missing."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def policy(style: str, script: str, files_beside: bool = False) -> str:
    """The content security policy of a page: this style and this script, by their digests, and nothing fetched.

    Args:
        style: Its style.
        script: Its script.
        files_beside: Whether it loads scripts from files beside it.
    """
    scripts = _digest(script) + (" 'self'" if files_beside else "")
    return f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {scripts}; base-uri 'none'"


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def asset(name: str, package: str = "hfsae.dashboard") -> str:
    """A file that pages are put together from."""
    return files(package).joinpath("assets", name).read_text(encoding="utf-8")
