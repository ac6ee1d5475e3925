"""`hfsae train`: SAEs from a YAML file and options."""

from hfsae.arguments.command_options import Config, with_training_options


@with_training_options
def run(config: Config = None, *, given: dict[str, str]) -> int:
    """Trains, and prints what was measured; 130 where the run was interrupted."""
    from accelerate import PartialState

    from hfsae.arguments.config_file import arguments_from
    from hfsae.evaluation.report import report, report_together
    from hfsae.training import SAETrainer

    output = SAETrainer(args=arguments_from({**given, "config": config})).train()
    for name, metrics in output.metrics.items() if PartialState().is_main_process else ():
        print(report(metrics, title=name or None))
    if output.together is not None and PartialState().is_main_process:
        print(report_together(output.together))
    return 0 if output.completed else 130
