"""`hfsae eval`: measures a saved SAE on held-out text."""

import argparse
from pathlib import Path

from hfsae.cli.measuring import add_measuring_options, measuring_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the folder, the text to measure on, and where figures go."""
    parser.add_argument("path", help="folder of the SAE")
    add_measuring_options(parser)
    parser.add_argument("--tokens", type=int, help="tokens to measure on; by default as many as were recorded")
    parser.add_argument("--baselines", action="store_true", help="measure the untrained SAE and PCA too")
    parser.add_argument("--json", metavar="FILE", help="write the figures into this file as well")
    parser.add_argument(
        "--write",
        action=argparse.BooleanOptionalAction,
        help="make them the record (config.json, metrics.json, card), or leave that alone; by default they are on the "
        "recorded text, or where nothing was recorded",
    )


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, and writes what replaces the record."""
    from hfsae.evaluation.report import report
    from hfsae.evaluation.saved import measure_saved
    from hfsae.hub.card import write_card
    from hfsae.saving import write_json

    options = measuring_options(args)
    metrics, written = measure_saved(args.path, **options, baselines=args.baselines, write=args.write)
    print(report(metrics))
    if args.json:
        write_json(Path(args.json), metrics)
        print(f"wrote {args.json}")
    if written:
        write_card(args.path)
        print(f"wrote {Path(args.path) / 'metrics.json'} and {Path(args.path) / 'README.md'}")
    else:
        print(f"the record in {args.path} stays as it is: --write replaces it by these figures")
    return 0
