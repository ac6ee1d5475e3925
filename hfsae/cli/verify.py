"""`hfsae verify`: whether the card of an SAE is true."""

import argparse

from hfsae.cli.measuring import add_measuring_options, measuring_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the SAE, and what to measure it with."""
    parser.add_argument("path", help="Hub repository or folder")
    parser.add_argument("--subfolder", default="", help="folder inside the repository")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--allow-pickle", action="store_true", help="open pickled weights of other projects")
    add_measuring_options(parser)
    parser.add_argument("--tokens", type=int, help="tokens to measure on; by default as many as were recorded")


def run(args: argparse.Namespace) -> int:
    """Measures and prints the comparison; 1 where the card is not true."""
    from hfsae.hub import verify

    outcome = verify(
        args.path,
        subfolder=args.subfolder,
        revision=args.revision,
        allow_pickle=args.allow_pickle,
        **measuring_options(args),
    )
    print(outcome)
    return 0 if outcome.ok else 1
