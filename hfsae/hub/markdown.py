"""Markdown that nothing in it can break out of: every value a template prints is escaped unless it was made here.

Names of datasets, hook points and arguments come from users and may hold anything. Examples are table bars, HTML, line
breaks, the markers around a card's generated block.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

_HTML = {"&": "&amp;", "<": "&lt;"}
# What means something in Markdown inside a line, HTML aside; `$` begins mathematics on the Hub.
_SPECIAL = re.compile(r"[\\`*_\[\]|~$&<]")
# What a code span cannot hold: its own delimiter, a table's bar, and the beginning of a comment or an entity.
_NOT_IN_CODE = re.compile(r"[`|<&]")
_SPACES = re.compile(r"\s+")
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){2,}")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def text(value: Any) -> Markup:
    """A value as text on one line.

    Line breaks, control characters and invisible ones (which can reverse the direction of writing) become spaces.
    """
    return Markup(_SPECIAL.sub(lambda match: _HTML.get(match[0], f"\\{match[0]}"), _one_line(value)))


def code(value: Any) -> Markup:
    """A value in a code span, or in `<code>` where a span could not hold it."""
    line = _one_line(value).strip()
    if line and not _NOT_IN_CODE.search(line):
        return Markup(f"`{line}`")
    return Markup(f"<code>{text(line)}</code>")


def python(value: str) -> Markup:
    """A Python string literal that also keeps a fenced block closed."""
    return Markup(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"))


def linked(value: str) -> Markup:
    """Text whose arXiv numbers are links, by which the Hub relates a card to papers."""
    return Markup(_ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text(value)))


def hub_link(repo_id: str) -> Markup:
    """A link to a repository of models on the Hub."""
    return Markup(f"[{text(repo_id)}](https://huggingface.co/{quote(repo_id)})")


def figure(value: float | None) -> str:
    """A number in four significant digits: `"0.9512"`, `"3.2"`, `"12,346"`; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`"45 s"`, `"12 min"`, `"3.4 h"`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fills in a template of `model_cards/`.

    Args:
        template: Its file name.
        values: What it may print; strings come out as `text` does them.

    Returns:
        Markdown in which the lines that were empty for want of a value have gone.
    """
    return _BLANK_LINES.sub("\n\n", _compiled(template).render(values)).strip()


@cache
def _compiled(template: str) -> Template:
    """A template of `model_cards/`, compiled once: that takes longer than all else about a card."""
    environment = Environment(
        autoescape=True,  # what macros give back is then marked as done
        finalize=lambda value: value if isinstance(value, Markup) else text("" if value is None else value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (code, python, linked, hub_link, figure)
    environment.filters |= {function.__name__: function for function in filters}
    source = files("hfsae.model_cards").joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(source)


def _one_line(value: Any) -> str:
    printable = "".join(character if character.isprintable() else " " for character in str(value))
    return _SPACES.sub(" ", printable)
