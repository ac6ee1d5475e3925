"""Writes the tables of docs/arguments.md from the fields of `SAETrainingArguments`.

python docs/scripts/arguments_page.py
"""

import re
import types
import typing
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Literal, Union

from hfsae import SAETrainingArguments
from hfsae.arguments.argument_fields import default_of

PAGE = Path(__file__).parents[1] / "arguments.md"
BEGIN, END = "<!-- arguments: begin -->", "<!-- arguments: end -->"


def tables() -> str:
    """A heading and a table for each group of arguments."""
    groups: dict[str, list[Field]] = {}
    for option in fields(SAETrainingArguments):
        groups.setdefault(option.metadata["group"], []).append(option)
    return "\n".join(_table(title, options) for title, options in groups.items())


def page() -> str:
    """The page with fresh tables between its marks."""
    text = PAGE.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:start]}\n\n{tables()}\n{text[end:]}"


def _table(title: str, options: list[Field]) -> str:
    lines = [f"## {title}", "", "| argument | values | default | what it does |", "|---|---|---|---|"]
    return "\n".join([*lines, *map(_row, options), ""])


def _row(option: Field) -> str:
    told = option.metadata
    marks = [mark for mark, name in (("S", "per_sae"), ("R", "free_on_resume")) if told[name]]
    text = " ".join([told["help"], *([f"It {told['range'].expected}."] if told["range"] else [])])
    told_by = f" <sup>{' '.join(marks)}</sup>" if marks else ""
    cells = [f"`{option.name}`{told_by}", _values(option.type), f"`{_shown(default_of(option))}`", _escaped(text)]
    return f"| {' | '.join(cells)} |"


def _values(annotation: Any) -> str:
    """`"auto"`, `"float32"` or a type, as a YAML file has it."""
    union = typing.get_origin(annotation) in (Union, types.UnionType)
    names = []
    for member in typing.get_args(annotation) if union else (annotation,):
        if typing.get_origin(member) is Literal:
            names += [f"`{value}`" for value in typing.get_args(member)]
        elif member is type(None):
            names.append("null")
        else:
            names.append(_KINDS.get(member, _KINDS.get(typing.get_origin(member), str(member))))
    return ", ".join(names)


_KINDS: dict[Any, str] = {
    bool: "true, false",
    int: "whole number",
    float: "number",
    str: "text",
    list: "list",
    dict: "names with values",
}


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else "null" if default is None else f"{default}"


def _escaped(text: str) -> str:
    """The text for a table's cell: outside of `code`, nothing in it means anything to Markdown."""
    parts = text.split("`")
    return "`".join(re.sub(r"([|*_<])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


if __name__ == "__main__":
    PAGE.write_text(page())
