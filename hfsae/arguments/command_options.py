"""An option for every training argument: of `hfsae train` and others, and of scripts."""

import json
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import Field
from functools import wraps
from typing import Annotated, Any, Literal

import typer
from typer.main import get_command

from hfsae.arguments.argument_fields import default_of, members_of
from hfsae.arguments.training_arguments import OPTIONS, PER_SAE, SAETrainingArguments
from hfsae.command_line import BOOLEAN, CHECKPOINT, Command, with_options

Config = Annotated[
    str | None,
    typer.Argument(metavar="CONFIG", help="YAML file with any of these options, or the name of one that comes along."),
]
"""The positional argument of every command that takes training arguments."""

_SPELLED = {int: "<int>", float: "<float>", str: "<str>", bool: BOOLEAN, dict: "<json>", list: "<list>"}


def with_training_options(
    command: Callable[..., Any], *, folder: str | None = None, lists: bool = False, **defaults: Any
) -> Callable[..., Any]:
    """A command that takes every training argument, and gets the texts of the given ones as `given`.

    Args:
        command: The function of the command.
        folder: What `output_dir` is here, where it is not a run's.
        lists: Whether what is of each SAE may be a list.
        **defaults: Defaults that it has of its own.
    """
    own = {} if folder is None else {"output_dir": folder}
    options = {
        name: typer.Option(
            f"--{name}",
            help=_explained(option, defaults.get(name, default_of(option)), own.get(name))
            + (" May be a list." if lists and name in PER_SAE else ""),
            metavar=_kind(option),
            show_default=False,
            rich_help_panel=option.metadata["group"],
        )
        for name, option in OPTIONS.items()
    }
    return with_options(command, "given", options)


def run_script(script: Callable[..., Any], command_line: Sequence[str] | None = None) -> None:
    """Runs a function on a command line: its signature says which options there are, as of hfsae's own commands.

    Args:
        script: The function; `with_training_options` adds those of training.
        command_line: What to parse; None for that of the process.

    Raises:
        SystemExit: If help was asked for (0), or the command line is none (2).
    """
    ended = []

    @wraps(script)
    def run(*args: Any, **kwargs: Any) -> None:
        script(*args, **kwargs)
        ended.append(True)

    application = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    application.command(cls=Command)(run)
    try:
        get_command(application).main(args=command_line)
    except SystemExit:
        if not ended:
            raise


def parse_training_arguments(command_line: Sequence[str] | None = None, **defaults: Any) -> SAETrainingArguments:
    """Arguments of a script: `script.py [CONFIG] [--option value ...]`.

    Args:
        command_line: What to parse; None for that of the process.
        **defaults: Arguments for when neither file nor command line gives them.

    Raises:
        SystemExit: If help was asked for (0), or the command line is none (2).
        FileNotFoundError, ValueError: As `arguments_from`.
    """
    from hfsae.arguments.config_file import arguments_from  # which loads pydantic: help does without

    parsed: dict[str, Any] = {}

    def script(config: Config = None, *, given: dict[str, str]) -> None:
        """Options win over the file."""
        parsed.update(given, config=config)

    run_script(with_training_options(script), command_line)
    return arguments_from(parsed, **defaults)


def _members(annotation: Any) -> list[Any]:
    """The kinds of value that an argument may have, null aside."""
    return [one for one in members_of(annotation) if one is not type(None)]


def _kind(option: Field) -> str:
    """What a value is to be, in a word."""
    if option.name == "resume_from_checkpoint":
        return CHECKPOINT
    members = _members(option.type)
    kinds = [_SPELLED[typing.get_origin(one) or one] for one in members if typing.get_origin(one) is not Literal]
    return "<json>" if "<json>" in kinds else kinds[0] if kinds else "<choice>"


def _explained(option: Field, default: Any, instead: str | None = None) -> str:
    """The help of an argument or what stands instead, what can be chosen, and its default, as YAML has them."""
    text = re.sub(r"\bNone\b", "null", instead or option.metadata["help"])
    literals = [typing.get_args(one) for one in _members(option.type) if typing.get_origin(one) is Literal]
    if len(words := [word for literal in literals for word in literal]) > 1:
        text += f" Choices: {', '.join(words)}."
    if default is None or default == {}:
        return text
    shown = default if isinstance(default, str) else f"{default:_}" if type(default) is int else json.dumps(default)
    return f"{text} Default: {shown}."
