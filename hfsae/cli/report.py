"""`hfsae report`: the page with curves, figures and features of a saved SAE, written again."""

from typing import Annotated

from hfsae.cli.measuring_options import Dataset, DatasetConfig, Folder, Model, Split, folders_of
from hfsae.command_line import option, whole_number


def run(
    path: Folder,
    model_name_or_path: Model = None,
    dataset_name: Dataset = None,
    dataset_config: DatasetConfig = None,
    dataset_split: Split = None,
    max_tokens: Annotated[
        int,
        option(
            "--max_tokens",
            "Tokens to look for examples in. --tokens for short.",
            parser=whole_number,
            metavar="<int>",
            rich_help_panel="Measuring",
        ),
    ] = 20_000,
) -> int:
    """Looks for examples of features and writes the page."""
    from hfsae.saved.saved_report import write_saved_report

    for folder in folders_of(path):
        page = write_saved_report(
            folder,
            model=model_name_or_path,
            dataset=dataset_name,
            dataset_config=dataset_config,
            split=dataset_split,
            max_tokens=max_tokens,
        )
        print(f"wrote {page}")
    return 0
