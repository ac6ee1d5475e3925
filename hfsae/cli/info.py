"""`hfsae info`: what an SAE is, from its config alone."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares where the SAE is."""
    parser.add_argument("path", help="folder or Hub repository")
    parser.add_argument("--subfolder", default="", help="folder inside the repository")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--allow-pickle", action="store_true", help="open pickled weights of other projects")
    parser.add_argument("--json", action="store_true", help="print the whole config as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints a description, or the config; weights are fetched of other projects' SAEs alone."""
    from hfsae.info import describe
    from hfsae.loading import load_config

    where = {"subfolder": args.subfolder, "revision": args.revision, "allow_pickle": args.allow_pickle}
    if args.json:
        print(load_config(args.path, fetch_weights=True, **where).to_json_string(use_diff=False))
    else:
        print(describe(args.path, **where))
    return 0
