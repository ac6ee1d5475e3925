"""The command line, `hfsae COMMAND`: one module a command, named after it.

A command's module has `add_options(parser)` and `run(args)`, which returns the exit status; what is heavy it imports
inside of `run`.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

# The commands in the order of `hfsae --help`, and what each is for.
COMMANDS = {
    "train": "train SAEs from a YAML file and options",
    "estimate": "say what a run will need, before anything is loaded",
    "sweep": "train many SAEs on one stream and compare them",
    "cache": "write activations to disk, to train from with --activation_cache",
    "eval": "measure a saved SAE, on the text of its record or on another",
    "card": "write the model card of a saved SAE anew",
    "features": "show which features fire on a text",
    "catalogue": "list well-known published SAEs",
    "convert": "convert SAEs from or to the formats of other projects, one or a whole repository",
    "push": "publish a saved SAE, or a folder of many, on the Hub",
    "verify": "measure a published SAE again and compare with its card",
    "dashboard": "write the features of an SAE on one page, to be searched, read and labelled",
    "space": "write the dashboard as a static Space of the Hub",
    "info": "say what a saved or published SAE is",
}


def main(command_line: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        command_line: Arguments; None for those of the process.

    Returns:
        The exit status: 0, or 1 with one line on standard error where the user can mend what went wrong.
    """
    args = _parser().parse_args(command_line)
    from huggingface_hub.errors import StrictDataclassError

    logging.basicConfig(format="%(message)s")
    logging.getLogger("hfsae").setLevel(logging.INFO)
    try:
        return args.run(args)
    except (ValueError, OSError, RuntimeError, TypeError, ArithmeticError, MemoryError, StrictDataclassError) as error:
        if args.traceback:
            raise
        # Errors of the Hub and of configs come in several lines.
        print(f"hfsae {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hfsae", description="Sparse autoencoders on Hugging Face language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose)
        module = import_module(f"hfsae.cli.{name}")
        module.add_options(command)
        command.set_defaults(run=module.run)
        command.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser
