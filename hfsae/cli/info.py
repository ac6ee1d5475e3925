"""`hfsae info`: what an SAE is, from its config alone."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares where the SAE is."""
    parser.add_argument("path", help="folder or Hub repository")
    parser.add_argument("--subfolder", default="", help="folder inside the repository")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--json", action="store_true", help="print the whole config as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints a description, or the config; no weights are fetched."""
    from hfsae.info import describe
    from hfsae.loading import load_config

    hub = {"subfolder": args.subfolder, "revision": args.revision}
    print(load_config(args.path, **hub).to_json_string(use_diff=False) if args.json else describe(args.path, **hub))
    return 0
