"""`hfsae eval`: measures a saved SAE on held-out text."""

import argparse
from pathlib import Path

from hfsae.cli.measuring import add_measuring_options, measuring_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the folder and the text to measure on."""
    parser.add_argument("path", help="folder of the SAE")
    add_measuring_options(parser)
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens to measure on (default: %(default)s)")
    parser.add_argument("--baselines", action="store_true", help="measure the untrained SAE and PCA too")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, writes metrics and card."""
    from hfsae.evaluation.report import report
    from hfsae.evaluation.saved import evaluate_saved
    from hfsae.hub.card import write_card

    metrics = evaluate_saved(
        args.path,
        **measuring_options(args),
        baselines=args.baselines,
    )
    print(report(metrics))
    write_card(args.path)
    print(f"wrote {Path(args.path) / 'metrics.json'} and {Path(args.path) / 'README.md'}")
    return 0
