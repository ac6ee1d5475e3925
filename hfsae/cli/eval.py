"""`hfsae eval`: measures a saved SAE on held-out text."""

from pathlib import Path
from typing import Annotated

from hfsae.cli.measuring import BatchSize, Dataset, DatasetConfig, Folder, Model, Split, Tokens
from hfsae.command_line import option


def run(
    path: Folder,
    baselines: Annotated[bool, option("--baselines", "Measure the untrained SAE and PCA too.")] = False,
    json_file: Annotated[str | None, option("--json_file", "Write the figures into this file as well.")] = None,
    write: Annotated[
        bool | None,
        option(
            "--write/--no_write",
            "Make them the record (config.json, metrics.json, card), or leave that alone; by default they become the "
            "record on the recorded text, or where nothing was recorded.",
            show_default=False,
        ),
    ] = None,
    model_name_or_path: Model = None,
    dataset_name: Dataset = None,
    dataset_config: DatasetConfig = None,
    dataset_split: Split = None,
    max_tokens: Tokens = None,
    batch_size: BatchSize = 16,
) -> int:
    """Measures, prints the table, and writes what replaces the record."""
    from hfsae.evaluation.report import report
    from hfsae.hub.card import write_card
    from hfsae.saved.measuring_again import measure_saved
    from hfsae.saving import write_json

    metrics, written = measure_saved(
        path,
        model=model_name_or_path,
        dataset=dataset_name,
        dataset_config=dataset_config,
        split=dataset_split,
        max_tokens=max_tokens,
        batch_size=batch_size,
        baselines=baselines,
        write=write,
    )
    print(report(metrics))
    if json_file:
        write_json(Path(json_file), metrics)
        print(f"wrote {json_file}")
    if written:
        write_card(path)
        print(f"wrote {Path(path) / 'metrics.json'} and {Path(path) / 'README.md'}")
    else:
        print(f"the record in {path} stays as it is: --write replaces it by these figures")
    return 0
