"""`hfsae verify`: whether the card of an SAE is true."""

import argparse

from hfsae.cli.measuring import add_hub_options, add_measuring_options, hub_options, measuring_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the SAE, and what to measure it with."""
    parser.add_argument("path", help="Hub repository, folder, or release of the catalogue")
    add_hub_options(parser)
    add_measuring_options(parser)
    parser.add_argument("--tokens", type=int, help="tokens to measure on; by default as many as were recorded")


def run(args: argparse.Namespace) -> int:
    """Measures and prints the comparison; 1 where the card is not true."""
    from hfsae.hub import verify

    outcome = verify(args.path, **hub_options(args), **measuring_options(args))
    print(outcome)
    return 0 if outcome.ok else 1
