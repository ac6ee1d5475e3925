"""`hfsae eval`: measures a saved SAE on held-out text."""

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the folder and the text to measure on."""
    parser.add_argument("path", help="folder of the SAE")
    parser.add_argument("--model", help="language model to measure it in; by default the one its config names")
    parser.add_argument("--dataset", help="text to measure on; by default that of its recorded metrics")
    parser.add_argument("--dataset-config", help="configuration of that dataset")
    parser.add_argument("--split", default="test", help="split of that dataset (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=200_000, help="tokens to measure on (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="blocks of text per pass (default: %(default)s)")
    parser.add_argument("--baselines", action="store_true", help="measure the untrained SAE and PCA too")


def run(args: argparse.Namespace) -> int:
    """Measures, prints the table, writes metrics and card."""
    from hfsae.evaluation.report import report
    from hfsae.evaluation.saved import evaluate_saved
    from hfsae.hub.card import write_card

    metrics = evaluate_saved(
        args.path,
        model=args.model,
        dataset=args.dataset,
        dataset_config=args.dataset_config,
        split=args.split,
        max_tokens=args.tokens,
        batch_size=args.batch_size,
        baselines=args.baselines,
    )
    print(report(metrics))
    write_card(args.path)
    print(f"wrote {Path(args.path) / 'metrics.json'} and {Path(args.path) / 'README.md'}")
    return 0
