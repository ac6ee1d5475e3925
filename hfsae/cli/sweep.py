"""`hfsae sweep`: many SAEs on one stream, measured side by side."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the config file and every training argument."""
    from hfsae.training.config_file import add_training_options

    add_training_options(parser)
    parser.add_argument("--list", action="store_true", help="name the SAEs and train nothing")


def run(args: argparse.Namespace) -> int:
    """Trains, and prints the table with its fronts; 130 where the run was interrupted."""
    import json
    from pathlib import Path

    from accelerate import PartialState

    from hfsae.training.sweep import Sweep, run_sweep
    from hfsae.training.sweep_results import RESULTS_JSON, results_table

    if args.config is None:
        raise ValueError("a sweep needs a YAML file.")
    sweep = Sweep.read(args.config, vars(args))
    if args.list:
        print("\n".join(sweep.saes))
        return 0
    output = run_sweep(sweep)
    if not output.completed:
        return 130
    if not PartialState().is_main_process:
        return 0
    folder = Path(sweep.args.output_dir)
    print(results_table(json.loads((folder / RESULTS_JSON).read_text())["saes"]))
    print(f"wrote {folder}")
    return 0
