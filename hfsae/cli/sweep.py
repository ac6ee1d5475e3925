"""`hfsae sweep`: many SAEs on one stream, measured side by side."""

from functools import partial
from typing import Annotated

from hfsae.arguments.command_options import Config, with_training_options
from hfsae.command_line import option


@partial(with_training_options, folder="Folder for all SAEs, a folder each, and what compares them.", lists=True)
def run(
    config: Config = None,
    list_only: Annotated[bool, option("--list", "Name the SAEs and train nothing.")] = False,
    *,
    given: dict[str, str],
) -> int:
    """Trains, and prints the table with its fronts; 130 where the run was interrupted."""
    import json
    from pathlib import Path

    from accelerate import PartialState

    from hfsae.sweeps.sweep import Sweep, run_sweep
    from hfsae.sweeps.sweep_results import RESULTS_JSON, results_table

    if config is None:
        raise ValueError("a sweep needs a YAML file.")
    sweep = Sweep.read(config, given)
    if list_only:
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
