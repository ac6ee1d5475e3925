"""The command line: `hfsae train | eval | card | info`. Everything heavy is imported by the command that needs it."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path


def main(command_line: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        command_line: Arguments; None for those of the process.

    Returns:
        The exit status: 0, or 1 with one line on standard error where the user can mend what went wrong.
    """
    parser = _parser()
    args = parser.parse_args(command_line)
    from huggingface_hub.errors import StrictDataclassError

    logging.basicConfig(format="%(message)s")
    logging.getLogger("hfsae").setLevel(logging.INFO)
    try:
        return args.run(args)
    except (ValueError, OSError, RuntimeError, TypeError, ArithmeticError, MemoryError, StrictDataclassError) as error:
        if args.traceback:
            raise
        # Errors of the Hub and of configs come in several lines.
        print(f"hfsae {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hfsae", description="Sparse autoencoders on Hugging Face language models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train SAEs from a YAML file and options")
    from hfsae.training.config_file import add_training_options

    add_training_options(train)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("eval", help="measure a saved SAE; writes metrics.json and the card")
    evaluate.add_argument("path", help="folder of the SAE")
    evaluate.add_argument("--model", help="language model to measure it in; by default the one its config names")
    evaluate.add_argument("--dataset", help="text to measure on; by default that of its recorded metrics")
    evaluate.add_argument("--dataset-config", help="configuration of that dataset")
    evaluate.add_argument("--split", default="test", help="split of that dataset (default: %(default)s)")
    evaluate.add_argument("--tokens", type=int, default=200_000, help="tokens to measure on (default: %(default)s)")
    evaluate.add_argument("--batch-size", type=int, default=16, help="blocks of text per pass (default: %(default)s)")
    evaluate.add_argument("--baselines", action="store_true", help="measure the untrained SAE and PCA too")
    evaluate.set_defaults(run=_evaluate)

    card = commands.add_parser("card", help="write the model card of a saved SAE anew")
    card.add_argument("path", help="folder of the SAE")
    card.set_defaults(run=_card)

    info = commands.add_parser("info", help="say what a saved or published SAE is")
    info.add_argument("path", help="folder or Hub repository")
    info.add_argument("--subfolder", default="", help="folder inside the repository")
    info.add_argument("--revision", help="branch, tag or commit")
    info.add_argument("--json", action="store_true", help="print the whole config as JSON")
    info.set_defaults(run=_info)

    for command in commands.choices.values():
        command.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def _train(args: argparse.Namespace) -> int:
    from hfsae.evaluation.report import report
    from hfsae.training import SAETrainer
    from hfsae.training.config_file import arguments_from

    output = SAETrainer(args=arguments_from(vars(args))).train()
    for name, metrics in output.metrics.items():
        print(report(metrics, title=name or None))
    return 0 if output.completed else 130


def _evaluate(args: argparse.Namespace) -> int:
    from hfsae.evaluation.report import report
    from hfsae.evaluation.saved import evaluate_saved

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
    from hfsae.hub.card import write_card

    write_card(args.path)
    print(f"wrote {Path(args.path) / 'metrics.json'} and {Path(args.path) / 'README.md'}")
    return 0


def _card(args: argparse.Namespace) -> int:
    from hfsae.hub.card import write_card

    print(f"wrote {write_card(args.path)}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from hfsae.info import describe
    from hfsae.loading import load_config

    hub = {"subfolder": args.subfolder, "revision": args.revision}
    print(load_config(args.path, **hub).to_json_string(use_diff=False) if args.json else describe(args.path, **hub))
    return 0


if __name__ == "__main__":
    sys.exit(main())
