"""`hfsae verify`: whether the card of an SAE is true."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the SAE, and what to measure it with."""
    parser.add_argument("path", help="Hub repository or folder")
    parser.add_argument("--subfolder", default="", help="folder inside the repository")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--allow-pickle", action="store_true", help="open pickled weights of other projects")
    parser.add_argument("--model", help="language model; by default the one its config names")
    parser.add_argument("--dataset", help="text to measure on; by default the one its metrics name")
    parser.add_argument("--dataset-config", help="configuration of that dataset")
    parser.add_argument("--split", default="test", help="split of that dataset (default: %(default)s)")
    parser.add_argument("--tokens", type=int, help="tokens to measure on; by default as many as were recorded")
    parser.add_argument("--batch-size", type=int, default=16, help="blocks of text per pass (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Measures and prints the comparison; 1 where the card is not true."""
    from hfsae.hub import verify

    outcome = verify(
        args.path,
        subfolder=args.subfolder,
        revision=args.revision,
        allow_pickle=args.allow_pickle,
        model=args.model,
        dataset=args.dataset,
        dataset_config=args.dataset_config,
        split=args.split,
        max_tokens=args.tokens,
        batch_size=args.batch_size,
    )
    print(outcome)
    return 0 if outcome.ok else 1
