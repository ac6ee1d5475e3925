"""What several commands are told: where an SAE lies, and the language model and the text to measure it on."""

import argparse
from typing import Any


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    """Declares which SAE of a place is meant, and how it may be read."""
    parser.add_argument("--subfolder", default="", help="folder inside the repository, or id of the release")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--allow-pickle", action="store_true", help="open pickled weights of other projects")


def hub_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of the options that were given, as `SAE.from_pretrained` and others call them."""
    names = ("subfolder", "revision", "allow_pickle")
    return {name: getattr(args, name) for name in names if getattr(args, name)}


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """Declares language model, text and batch size."""
    parser.add_argument("--model", help="language model to measure it in; by default the one its config names")
    parser.add_argument("--dataset", help="text to measure on; by default that of its recorded metrics")
    parser.add_argument("--dataset-config", help="configuration of that dataset")
    parser.add_argument("--split", help="split of that dataset (default: the only one, or test)")
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
