"""What `hfsae eval` and `hfsae verify` are both told: the language model and the text to measure an SAE on."""

import argparse
from typing import Any


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Declares language model, text and batch size."""
    parser.add_argument("--model", help="language model to measure it in; by default the one its config names")
    parser.add_argument("--dataset", help="text to measure on; by default that of its recorded metrics")
    parser.add_argument("--dataset-config", help="configuration of that dataset")
    parser.add_argument("--split", default="test", help="split of that dataset (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="blocks of text per pass (default: %(default)s)")


def measuring_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options and `--tokens`, as `hfsae.evaluation.saved.measure_again` calls them."""
    return {
        "model": args.model,
        "dataset": args.dataset,
        "dataset_config": args.dataset_config,
        "split": args.split,
        "max_tokens": args.tokens,
        "batch_size": args.batch_size,
    }
