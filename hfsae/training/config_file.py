"""Training arguments from a YAML file and command-line overrides, checked by name and type."""

import argparse
import types
import typing
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from hfsae.suggestions import did_you_mean
from hfsae.training.arguments import SAETrainingArguments


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Gives a parser a positional YAML file and one option for every training argument."""
    parser.add_argument("config", nargs="?", help="YAML file with any of the options below")
    options = parser.add_argument_group("options", "Each can stand in the YAML file; the command line wins.")
    for option in fields(SAETrainingArguments):
        options.add_argument(
            f"--{option.name}",
            # A bare flag means true: `--streaming`.
            nargs="?",
            const="true",
            default=argparse.SUPPRESS,
            metavar="X",
            help=option.metadata["help"].replace("%", "%%"),
        )


def parse_training_arguments(command_line: Sequence[str] | None = None, **defaults: Any) -> SAETrainingArguments:
    """Arguments of a script: `script.py [CONFIG.yaml] [--option value ...]`.

    Args:
        command_line: What to parse; None for that of the process.
        **defaults: Arguments for when neither file nor command line gives them.
    """
    parser = argparse.ArgumentParser()
    add_training_options(parser)
    return arguments_from(vars(parser.parse_args(command_line)), **defaults)


def arguments_from(parsed: dict[str, Any], **defaults: Any) -> SAETrainingArguments:
    """Joins defaults, the file `parsed["config"]` and the options that were given, in rising order of rank.

    Args:
        parsed: Options by name, their values as text; other names are left alone.
        **defaults: Arguments for when neither gives them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a name is unknown or a value has the wrong type; says which and where.
    """
    names = {option.name for option in fields(SAETrainingArguments)}
    values = dict(defaults)
    if parsed.get("config"):
        values |= read_config(parsed["config"])
    for name in names & parsed.keys():
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
        refuse_unknown(name, [option.name for option in fields(SAETrainingArguments)], str(path))
    return {name: coerce(name, value, f"{path}: {name}") for name, value in content.items()}


def read_mapping(path: str | Path) -> dict[str, Any]:
    """What a YAML file of `name: value` lines holds; nothing is checked but that.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}.")
    content = read_yaml(path.read_text(), str(path))
    if not isinstance(content, dict | None):
        raise ValueError(f"{path} must hold `name: value` lines, got a {type(content).__name__}.")
    return content or {}


def refuse_unknown(name: Any, known: Collection[str], where: str) -> None:
    """Raises a ValueError if a name is not among those that are known, with the one that was probably meant."""
    if name not in known:
        raise ValueError(f"{where}: unknown argument {name!r}.{did_you_mean(name, known)}")


def coerce(name: str, value: Any, where: str) -> Any:
    """The value of an argument in the type that it has.

    YAML 1.1 reads `1e-3` as text, and a shell gives nothing but text.

    Args:
        name: The argument.
        value: As it was read.
        where: Said in the error.

    Raises:
        ValueError: If the value has another type.
    """
    annotation = typing.get_type_hints(SAETrainingArguments)[name]
    if value == "null" and _accepts(annotation, type(None)):
        return None
    if isinstance(value, str) and not _matches(value, annotation):
        value = read_yaml(value, where)
    if not _matches(value, annotation):
        value = _as_number(value, annotation)
    if not _matches(value, annotation):
        raise ValueError(f"{where}: expected {_spell(annotation)}, got {value!r}.")
    return value


def _as_number(value: Any, annotation: Any) -> Any:
    """A number in the type that is wanted: 1 for a float, `1e9` for an int; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    if _accepts(annotation, float):
        return number
    return int(number) if _accepts(annotation, int) and number.is_integer() else value


def read_yaml(text: str, where: str) -> Any:
    """What a piece of YAML says; a ValueError that names the place where it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: this is not YAML: {' '.join(str(error).split())}.") from error


def _members(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _accepts(annotation: Any, kind: type) -> bool:
    return kind in _members(annotation)


def _matches(value: Any, annotation: Any) -> bool:
    for member in _members(annotation):
        origin, inner = typing.get_origin(member), typing.get_args(member)
        if origin is Literal:
            fits = value in inner
        elif origin is list:
            fits = isinstance(value, list) and all(_matches(item, inner[0]) for item in value)
        elif origin is dict:
            fits = isinstance(value, dict)
        else:
            fits = type(value) is (type(None) if member is None else member)
        if fits:
            return True
    return False


def _spell(annotation: Any) -> str:
    names = []
    for member in _members(annotation):
        if typing.get_origin(member) is Literal:
            names.append("one of " + ", ".join(map(repr, typing.get_args(member))))
        elif member is type(None):
            names.append("null")
        else:
            names.append(member.__name__ if isinstance(member, type) else str(member))
    return " or ".join(names)
