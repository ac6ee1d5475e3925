"""`hfsae space`: the dashboard as a static Space of the Hub."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the SAE, the folder, and what the Space shows."""
    from hfsae.cli.dashboard import add_contents

    add_contents(parser)
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--title", help="what the Space is called; by default as the SAE")
    parser.add_argument("--repo-id", help="Hub repository of the SAE, for the Space to be listed there")


def run(args: argparse.Namespace) -> int:
    """Collects what is missing and writes the folder."""
    from hfsae.cli.dashboard import contents
    from hfsae.dashboard import gather, write_space

    material = gather(args.path, **contents(args))._asdict()
    if args.title:
        material["title"] = args.title
    folder = write_space(output=args.output, repo_id=args.repo_id, **material)
    print(f"wrote {folder}; publish it with: hf upload ORG/NAME {folder} --repo-type space")
    return 0
