"""YAML that people wrote on, changed where its values change: everything else stays byte for byte."""

from typing import Any

import yaml
from huggingface_hub.utils import yaml_dump


def dump(values: Any) -> str:
    """Plain values as `huggingface_hub` writes them."""
    return yaml_dump(values, sort_keys=False).strip()


def patched(text: str, values: dict[str, Any]) -> str:
    """A text that stands for some values, made of one that stands for others.

    Keys and items whose values stay keep their spelling, their comments and their place. A value that cannot be taken
    apart (references, everything in braces) is rewritten, with the same content.

    Args:
        text: The YAML of a mapping.
        values: What it is to say.
    """
    wanted = _comparable(yaml.safe_load(dump(values)))
    try:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        if not any(isinstance(event, yaml.AliasEvent) for event in events):
            fresh = _Patch(text.strip("\n")).whole(values).strip("\n")
            if _comparable(yaml.safe_load(fresh)) == wanted:
                return fresh
    except (yaml.YAMLError, _NotInPlaceError):
        pass
    return dump(values)


class _NotInPlaceError(Exception):
    """A value can only be rewritten."""


class _Patch:
    """One text, whose parts are looked up by the places of YAML's nodes in it."""

    def __init__(self, text: str):
        self._text = text
        self._loader = yaml.SafeLoader("")

    def whole(self, values: dict[str, Any]) -> str:
        """The text of these values."""
        root = yaml.compose(self._text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise _NotInPlaceError
        start = root.start_mark.index
        return self._text[:start] + self._part(root, len(self._text), values)

    def _part(self, node: yaml.Node, end: int, value: Any) -> str:
        """The text from a node's start up to `end`, in which the node has another value."""
        start = node.start_mark.index
        if self._says(node, value):
            return self._text[start:end]
        if isinstance(node, yaml.ScalarNode) and node.style not in ("|", ">") and not isinstance(value, dict | list):
            return dump([value]).removeprefix("- ") + self._text[node.end_mark.index : end]
        if isinstance(node, yaml.CollectionNode) and node.flow_style:
            raise _NotInPlaceError
        if isinstance(node, yaml.MappingNode) and isinstance(value, dict) and value:
            return self._mapping(node, end, value)
        if isinstance(node, yaml.SequenceNode) and isinstance(value, list) and value:
            return self._sequence(node, end, value)
        raise _NotInPlaceError

    def _mapping(self, node: yaml.MappingNode, end: int, values: dict[str, Any]) -> str:
        column = node.start_mark.column
        starts = [node.start_mark.index, *(self._line_of(key.start_mark.index) for key, _ in node.value[1:])]
        parts, kept = [], set()
        for (key, inner), start, stop in zip(node.value, starts, [*starts[1:], end], strict=True):
            name = self._loader.construct_object(key, deep=True)
            if name not in values:
                continue
            kept.add(name)
            try:
                parts.append(self._text[start : inner.start_mark.index] + self._part(inner, stop, values[name]))
            except _NotInPlaceError:
                entry = _indented(dump({name: values[name]}), column).lstrip()
                parts.append(self._text[start : key.start_mark.index] + entry)
        added = [_indented(dump({name: values[name]}), column) for name in values if name not in kept]
        return _lines([*parts, *added])

    def _sequence(self, node: yaml.SequenceNode, end: int, values: list[Any]) -> str:
        column, items = node.start_mark.column, node.value
        dashes = [self._text.rfind("-", 0, item.start_mark.index) for item in items]
        stops = [*(self._line_of(dash) for dash in dashes[1:]), end]
        free = list(range(len(items)))
        found: list[int | None] = []
        for value in values:
            found.append(next((i for i in free if self._says(items[i], value)), None))
            if found[-1] is not None:
                free.remove(found[-1])
        parts = []
        for value, i in zip(values, found, strict=True):
            if i is None and (i := next((i for i in free if self._resembles(items[i], value)), None)) is not None:
                free.remove(i)
            if i is None:
                part = _indented(dump([value]), column).lstrip()
            else:
                part = self._text[dashes[i] : items[i].start_mark.index] + self._part(items[i], stops[i], value)
            parts.append(part)
        return _lines([parts[0], *(" " * column + part for part in parts[1:])])

    def _says(self, node: yaml.Node, value: Any) -> bool:
        return _comparable(self._loader.construct_object(node, deep=True)) == _comparable(value)

    def _resembles(self, node: yaml.Node, value: Any) -> bool:
        """Whether a mapping has a part in common with another, so that it can be patched into it."""
        old = self._loader.construct_object(node, deep=True)
        if not (isinstance(old, dict) and isinstance(value, dict)) or getattr(node, "flow_style", True):
            return False
        return any(key in value and _comparable(old[key]) == _comparable(value[key]) for key in old)

    def _line_of(self, index: int) -> int:
        """Where the line begins."""
        return self._text.rfind("\n", 0, index) + 1


def _comparable(value: Any) -> str:
    """A text that equal values share, NaN included."""
    return yaml_dump(value, sort_keys=True)


def _lines(parts: list[str]) -> str:
    """Parts one after the other, each on lines of its own."""
    return "".join(part if part.endswith("\n") else f"{part}\n" for part in parts[:-1]) + "".join(parts[-1:])


def _indented(text: str, column: int) -> str:
    return "".join(f"{' ' * column}{line}\n" for line in text.splitlines())
