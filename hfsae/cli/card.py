"""`hfsae card`: writes a model card anew."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the folder."""
    parser.add_argument("path", help="folder of the SAE")


def run(args: argparse.Namespace) -> int:
    """Renders the card from what stands in the folder."""
    from hfsae.hub.card import write_card

    print(f"wrote {write_card(args.path)}")
    return 0
