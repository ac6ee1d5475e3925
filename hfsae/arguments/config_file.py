"""Training arguments from a YAML file and command-line overrides, checked by name and type."""

import typing
from collections.abc import Collection
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from hfsae.arguments.argument_fields import members_of
from hfsae.arguments.training_arguments import OPTIONS, SAETrainingArguments
from hfsae.suggestions import did_you_mean


def arguments_from(parsed: dict[str, Any], **defaults: Any) -> SAETrainingArguments:
    """Joins defaults, the file `parsed["config"]` and the options that were given, in rising order of rank.

    Args:
        parsed: Options by name, their values as text; other names are left alone.
        **defaults: Arguments for when neither gives them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a name is unknown or a value has the wrong type; says which and where.
    """
    values = dict(defaults)
    if parsed.get("config"):
        values |= read_config(parsed["config"])
    for name in OPTIONS.keys() & parsed.keys():
        values[name] = coerce(name, parsed[name], f"--{name}")
    return SAETrainingArguments(**values)


def read_config(path: str | Path) -> dict[str, Any]:
    """The training arguments in a YAML file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no mapping, a name is unknown, or a value has the wrong type.
    """
    content = read_mapping(path)
    for name in content:
        refuse_unknown(name, OPTIONS, str(path))
    return {name: coerce(name, value, f"{path}: {name}") for name, value in content.items()}


def read_mapping(path: str | Path) -> dict[str, Any]:
    """What a YAML file of `name: value` lines holds; nothing is checked but that.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    path = _found(path)
    content = read_yaml(path.read_text(), str(path))
    if not isinstance(content, dict | None):
        raise ValueError(f"{path} must hold `name: value` lines, got a {type(content).__name__}.")
    return content or {}


def _found(path: str | Path) -> Path:
    """A file as it is named, or the one of that name that comes along."""
    if Path(path).is_file():
        return Path(path)
    own = {file.stem: file for file in Path(str(files("hfsae") / "configs")).glob("*.yaml")}
    if str(path).removesuffix(".yaml") in own:
        return own[str(path).removesuffix(".yaml")]
    known = ", ".join(f"{name} ({_first_line(file)})" for name, file in sorted(own.items()))
    raise FileNotFoundError(
        f"no config file {path}.{did_you_mean(Path(path).stem, own)} These come along, by name: {known}."
    )


def _first_line(file: Path) -> str:
    """What a file that comes along is for: the beginning of its first line."""
    return file.read_text().partition("\n")[0].lstrip("# ").partition(":")[0].rstrip(".")


def refuse_unknown(name: Any, known: Collection[str], where: str) -> None:
    """Raises a ValueError if a name is not known, with the one that was probably meant."""
    if name not in known:
        raise ValueError(f"{where}: unknown argument {name!r}.{did_you_mean(name, known)}")


def coerce(name: str, value: Any, where: str) -> Any:
    """The value of an argument in the type that it has, as pydantic has it.

    YAML 1.1 reads `1e-3` as text, and a shell gives nothing but text.

    Args:
        name: The argument.
        value: As it was read.
        where: Said in the error.

    Raises:
        ValueError: If the value has another type.
    """
    adapter, readings = _adapter(name), [value]
    if isinstance(value, str):
        readings = [None, value] if value == "null" else [value]
    for reading in readings:
        with suppress(ValidationError):
            return adapter.validate_python(reading, strict=True)
    value = read_yaml(value, where) if isinstance(value, str) else value
    for reading in (value, _as_number(value)):
        with suppress(ValidationError):
            return adapter.validate_python(reading, strict=True)
    raise ValueError(f"{where}: expected {_spell(OPTIONS[name].type)}, got {value!r}.")


@cache
def _adapter(name: str) -> TypeAdapter:
    annotation: Any = OPTIONS[name].type
    return TypeAdapter(annotation)


def _as_number(value: Any) -> Any:
    """What people write as a number, as one: `1e9` and 64.0 are whole ones; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    with suppress(ValueError):
        number = float(value)
        return int(number) if number.is_integer() else number
    return value


def read_yaml(text: str, where: str) -> Any:
    """What a piece of YAML says; a ValueError that names the place where it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: this is not YAML: {' '.join(str(error).split())}.") from error


def _spell(annotation: Any) -> str:
    names = []
    for member in members_of(annotation):
        if typing.get_origin(member) is Literal:
            names.append("one of " + ", ".join(map(repr, typing.get_args(member))))
        elif member is type(None):
            names.append("null")
        else:
            names.append(member.__name__ if isinstance(member, type) else str(member))
    return " or ".join(names)
