"""Pages that open offline, as the dashboard and the page of a graph do: what both are put together from.

Nothing of the data can become markup. JSON stands in a script element that is no script, with every `<` of it written
as `\\u003c`, and the page shows it as text. A content security policy lets a page run its own scripts, by their
digests, and fetch nothing. `assets/` holds the style, and the scripts that build elements and show tokens.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup


def as_json(content: Any) -> str:
    """JSON that browsers read, in ASCII. NaN and infinity have no word in it: they are null, shown as "not known"."""
    try:
        return json.dumps(content, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(content), separators=(",", ":"), allow_nan=False)


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def as_data(content: Any) -> str:
    """JSON that may stand in a script element: as `as_json`, and it holds no `<`."""
    return as_json(content).replace("<", "\\u003c")


def render_html(
    page: str, style: str, script: str, files_beside: bool = False, asks_server: bool = False, **content: Any
) -> str:
    """The HTML of a page, in which content is escaped, and nothing that the template names may be missing.

    Its content security policy lets it run this style and this script, by their digests, and fetch nothing.

    Args:
        page: Its template, which extends `base.html`.
        style: Its style.
        script: Its script.
        files_beside: Whether it loads scripts from files beside it.
        asks_server: Whether it asks the server that it came from.
        **content: What the template names, among it `title`.
    """
    scripts = _digest(script) + (" 'self'" if files_beside else "")
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {scripts}; base-uri 'none'"
    policy += "; connect-src 'self'; form-action 'none'" if asks_server else ""
    shared = DictLoader({"base.html": asset("base.html")})
    environment = Environment(
        loader=shared, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(page)
    return template.render(policy=policy, style=Markup(style), script=Markup(script), **content)


def asset(name: str, package: str = "hfsae.webpage") -> str:
    """A file that pages are put together from.

    Args:
        name: The file in the `assets` of a package.
        package: The package; by default what all pages share.
    """
    return files(package).joinpath("assets", name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
