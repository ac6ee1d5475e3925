"""`hfsae card`: writes a model card anew, or shows it."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the folder, and whether the card is only looked at."""
    parser.add_argument("path", help="folder of the SAE")
    parser.add_argument("--print", action="store_true", help="print the card instead; nothing is written")


def run(args: argparse.Namespace) -> int:
    """Renders the card from what stands in the folder."""
    from hfsae.hub.card import card_of, write_card

    if args.print:
        print(card_of(args.path))
    else:
        print(f"wrote {write_card(args.path)}")
    return 0
