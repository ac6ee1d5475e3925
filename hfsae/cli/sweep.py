"""`hfsae sweep`: many SAEs on one stream, measured side by side."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the config file and every training argument."""
    from hfsae.training.config_file import add_training_options

    add_training_options(parser)
    parser.add_argument("--list", action="store_true", help="name the SAEs and train nothing")


def run(args: argparse.Namespace) -> int:
    """Trains, and prints the table with its fronts; 130 where the run was interrupted."""
    from pathlib import Path

    from hfsae.training.sweep import Sweep, result_rows, results_table, run_sweep

    if args.config is None:
        raise ValueError("a sweep needs a YAML file.")
    sweep = Sweep.read(args.config, vars(args))
    if args.list:
        print("\n".join(sweep.saes))
        return 0
    output = run_sweep(sweep)
    if not output.completed:
        return 130
    print(results_table(result_rows(sweep, output)))
    print(f"wrote {Path(sweep.args.output_dir)}")
    return 0
