"""Pages that open offline, as the dashboard and the page of a graph do: what both are put together from.

Nothing of the data can become markup. JSON stands in a script element that is no script, with every `<` of it written
as `\\u003c`, and the page shows it as text. A content security policy lets a page run its own scripts, by their
digests, and fetch nothing. `assets/` holds the style, and the scripts that build elements and show tokens.
"""

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template


def template(source: str) -> Template:
    """A page's template, in which what is filled in is escaped, and nothing may be missing."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source)


def as_data(content: Any) -> str:
    """JSON that may stand in a script element: it holds no `<`, and nothing that is not ASCII."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def policy(style: str, script: str, files_beside: bool = False) -> str:
    """The content security policy of a page: this style and this script, by their digests, and nothing fetched.

    Args:
        style: Its style.
        script: Its script.
        files_beside: Whether it loads scripts from files beside it.
    """
    scripts = _digest(script) + (" 'self'" if files_beside else "")
    return f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {scripts}; base-uri 'none'"


def asset(name: str, package: str = "hfsae.webpage") -> str:
    """A file that pages are put together from.

    Args:
        name: The file in the `assets` of a package.
        package: The package; by default what all pages share.
    """
    return files(package).joinpath("assets", name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
