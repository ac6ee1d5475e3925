"""`hfsae info`: what an SAE is, from its config alone."""

import argparse

from hfsae.cli.measuring import add_hub_options, hub_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares where the SAE is."""
    parser.add_argument("path", help="folder, Hub repository, or release of the catalogue")
    add_hub_options(parser)
    parser.add_argument("--json", action="store_true", help="print the whole config as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints a description, or the config; weights are fetched of other projects' SAEs alone."""
    from hfsae.info import describe
    from hfsae.loading import load_config

    where = hub_options(args)
    if args.json:
        print(load_config(args.path, fetch_weights=True, **where).to_json_string(use_diff=False))
    else:
        print(describe(args.path, **where))
    return 0
