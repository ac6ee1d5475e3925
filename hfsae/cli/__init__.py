"""The command line, `hfsae COMMAND`: one module a command, named after it.

A command's module has `run`: its signature is what the command takes, and it returns the exit status. What is heavy it
imports inside of `run`, so that the help of every command is there at once.
"""

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_command

from hfsae.command_line import Command, option, with_groups, with_signature
from hfsae.versions import version_of

COMMANDS = {
    "Train": {
        "train": "Train SAEs from a YAML file and options.",
        "estimate": "Say what a run will need, before anything is loaded.",
        "sweep": "Train many SAEs on one stream and compare them.",
        "cache": "Write activations to disk, to train from with --activation_cache.",
    },
    "Look at an SAE": {
        "info": "Say what a saved or published SAE is.",
        "features": "Show which features fire on a text.",
        "featurize": "Write the features of a dataset, a document or a token a row.",
        "search": "Find features by words, by a passage, or by texts with and without something.",
        "label": "Let a language model say what features respond to, and score what it says.",
        "dashboard": "Write the features of an SAE on one page, to be searched, read and labelled.",
        "serve": "Serve a page of this machine: type, see features, steer with sliders.",
        "steer": "Continue a text with a feature turned up, or measure what many strengths of it do.",
        "steer-model": "Write a language model that a feature steers by itself, without hfsae.",
        "trace": "Show which features of a prompt make what the model says.",
        "diff": "Say which features a crosscoder's sources share, and which one of them has alone.",
        "score": "Say how well features tell concepts, and what absorbs them.",
        "match": "Say which features of two SAEs are the same.",
        "eval": "Measure a saved SAE, on the text of its record or on another.",
        "card": "Write the model card of a saved SAE again.",
        "report": "Write the page with curves, figures and features of a saved SAE again.",
    },
    "The Hub and other projects": {
        "push": "Publish a saved SAE, or a folder of many, on the Hub.",
        "verify": "Measure a published SAE again and compare with its card.",
        "space": "Write the dashboard as a static Space of the Hub.",
        "catalogue": "List well-known published SAEs.",
        "convert": "Convert SAEs from or to the formats of other projects, one or a whole repository.",
    },
}
"""What each command is for, under the headings and in the order of `hfsae --help`."""


def main(command_line: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        command_line: Arguments; None for those of the process.

    Returns:
        The exit status: 0, or 1 with one line on standard error where the user can mend what went wrong.

    Raises:
        SystemExit: If there is nothing to run: help was asked for (0), or the command line is none (2).
    """
    ended: list[int] = []
    try:
        get_command(_application(ended)).main(args=command_line, prog_name="hfsae")
    except SystemExit:
        if not ended:
            raise
    return ended[0]


def _application(ended: list[int]) -> typer.Typer:
    """All commands; the exit status of the one that runs is put on `ended`."""
    application = typer.Typer(
        help="Sparse autoencoders on Hugging Face language models.",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog="An option is called as the argument in Python and YAML; hyphens may stand for its underscores.",
    )
    application.callback(invoke_without_command=True)(_root)
    for panel, commands in COMMANDS.items():
        for name, purpose in commands.items():
            module = import_module(f"hfsae.cli.{name.replace('-', '_')}")
            run = _guarded(name, with_groups(module.run), ended)
            application.command(name, cls=Command, help=purpose, rich_help_panel=panel)(run)
    return application


def _root(
    context: typer.Context, version: Annotated[bool, option("--version", "Say which version this is.")] = False
) -> None:
    if version:
        print(f"hfsae {version_of('hfsae')}")
    elif context.invoked_subcommand is None:
        print(context.get_help(), end="")


def _guarded(name: str, run: Callable[..., int], ended: list[int]) -> Callable[..., None]:
    """A command that says in one line what a user can mend, and takes `--traceback`."""

    @functools.wraps(run)
    def guarded(*, modules: list[str] | None = None, traceback: bool = False, **values: Any) -> None:
        from huggingface_hub.errors import StrictDataclassError

        from hfsae.progress import LogsAboveBars

        import_module("hfsae.architectures")  # as importing hfsae does elsewhere: SAEs and their configs are known
        mendable = (ValueError, OSError, RuntimeError, TypeError, ArithmeticError, MemoryError, ImportError)
        logging.basicConfig(format="%(message)s", handlers=[LogsAboveBars()])
        logging.getLogger("hfsae").setLevel(logging.INFO)
        try:
            _import(modules or [])
            ended.append(run(**values))
        except (*mendable, StrictDataclassError) as error:
            if traceback:
                raise
            # Errors of the Hub and of configs come in several lines.
            print(f"hfsae {name}: {' '.join(str(error).split())}", file=sys.stderr)
            ended.append(1)

    own = list(inspect.signature(run).parameters.values())
    shows = Annotated[bool, option("--traceback", "Show where an error came from.")]
    imports = Annotated[
        list[str] | None,
        option(
            "--import",
            "A Python module to import first, such as one with an architecture of your own; may be repeated.",
            metavar="MODULE",
        ),
    ]
    common = [
        inspect.Parameter("modules", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=imports),
        inspect.Parameter("traceback", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=shows),
    ]
    return with_signature(guarded, [*own, *common])


def _import(modules: Sequence[str]) -> None:
    """Imports modules by name, those of the folder that the command runs in among them."""
    for module in modules:
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)
        import_module(module)
