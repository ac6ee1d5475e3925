"""`hfsae train`: SAEs from a YAML file and options."""

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the config file and every training argument."""
    from hfsae.training.config_file import add_training_options

    add_training_options(parser)


def run(args: argparse.Namespace) -> int:
    """Trains, and prints what was measured; 130 where the run was interrupted."""
    from accelerate import PartialState

    from hfsae.evaluation.report import report
    from hfsae.training import SAETrainer
    from hfsae.training.config_file import arguments_from

    output = SAETrainer(args=arguments_from(vars(args))).train()
    for name, metrics in output.metrics.items() if PartialState().is_main_process else ():
        print(report(metrics, title=name or None))
    return 0 if output.completed else 130
