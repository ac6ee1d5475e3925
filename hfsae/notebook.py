"""What notebooks and interpreters show of hfsae's objects: tables, and the names that they complete."""

import sys
from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import Any


def html_table(
    rows: Iterable[Sequence[object]], *, header: Sequence[object] = (), caption: str = "", note: str = ""
) -> str:
    """An HTML table; everything in it is escaped, and it takes the notebook's own colours.

    Args:
        rows: The cells, as objects whose `str` is shown.
        header: Titles of the columns; without them the first cell of each row is its title.
        caption: A line above.
        note: A line below, such as how much is left out.
    """
    head = f"<thead><tr>{''.join(_cell('th', title) for title in header)}</tr></thead>" if header else ""
    body = "".join(
        f"<tr>{_cell('td' if header else 'th', row[0])}{''.join(_cell('td', cell) for cell in row[1:])}</tr>"
        for row in rows
    )
    above = f'<div style="font-weight:bold">{escape(caption)}</div>' if caption else ""
    below = f'<div style="opacity:.7">{escape(note)}</div>' if note else ""
    return f"<div>{above}<table>{head}<tbody>{body}</tbody></table>{below}</div>"


def completions(value: Any, base: type, kept: Collection[str], names: Iterable[str]) -> list[str]:
    """What `dir` is to say of an object: without the public names that it inherits, except a few.

    Args:
        value: The object.
        base: The class of another library that it inherits from.
        kept: Inherited names that people use.
        names: All names, as `dir` would have them.
    """
    bases = type(value).__mro__
    own = {name for derived in bases[: bases.index(base)] for name in vars(derived)}
    hidden = {name for name in dir(base) if not name.startswith("_")} - own - set(kept)
    return sorted(set(names) - hidden)


def complete_by_dir(kind: type) -> None:
    """Has IPython complete what `dir` says of an object, to which it otherwise adds all names of the class.

    Args:
        kind: The class of the objects.
    """
    if (generics := sys.modules.get("IPython.utils.generics")) is not None:  # IPython is running
        generics.complete_object.register(kind, lambda value, names: dir(value))


def _cell(tag: str, content: object) -> str:
    return f'<{tag} style="text-align:left;padding:2px 12px 2px 0">{escape(str(content))}</{tag}>'
