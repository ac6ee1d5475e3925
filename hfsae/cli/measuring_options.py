"""What several commands are told: where an SAE lies, and the language model and the text to measure it on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hfsae.command_line import option, whole_number

_MEASURING = "Measuring"
_HUB = "Hub"

Folder = Annotated[str, typer.Argument(metavar="SAE", help="Folder of the SAE, or of a set.")]
SAESource = Annotated[
    str,
    typer.Argument(metavar="SAE", help="Folder of the SAE or of a set, Hub repository, or release of the catalogue."),
]
Subfolder = Annotated[
    str,
    option(
        "--subfolder", "Folder inside the repository, or id in the release.", rich_help_panel=_HUB, show_default=False
    ),
]
Revision = Annotated[str | None, option("--revision", "Branch, tag or commit.", rich_help_panel=_HUB)]
AllowPickle = Annotated[
    bool, option("--allow_pickle", "Open pickled weights of other projects.", rich_help_panel=_HUB)
]

Model = Annotated[
    str | None,
    option(
        "--model_name_or_path",
        "Language model to measure it in; by default the one that its config names. --model for short.",
        rich_help_panel=_MEASURING,
    ),
]
Dataset = Annotated[
    str | None,
    option(
        "--dataset_name",
        "Text to measure on; by default that of its recorded metrics. --dataset for short.",
        rich_help_panel=_MEASURING,
    ),
]
DatasetConfig = Annotated[
    str | None, option("--dataset_config", "Configuration of that dataset.", rich_help_panel=_MEASURING)
]
Split = Annotated[
    str | None,
    option(
        "--dataset_split",
        "Split of that dataset; by default the only one, or test. --split for short.",
        rich_help_panel=_MEASURING,
    ),
]
BatchSize = Annotated[int, option("--batch_size", "Blocks of text per pass.", rich_help_panel=_MEASURING)]
TokenBudget = Annotated[
    int | None,
    option(
        "--max_tokens",
        "Tokens to measure on; by default as many as were recorded. --tokens for short.",
        parser=whole_number,
        metavar="<int>",
        rich_help_panel=_MEASURING,
    ),
]

TokensToCollect = Annotated[
    int,
    option(
        "--max_tokens",
        "Tokens to read where features were not collected yet. --tokens for short.",
        parser=whole_number,
        metavar="<int>",
        rich_help_panel=_MEASURING,
    ),
]
BaseModel = Annotated[
    str | None,
    option("--base_model", "Language model that the SAE reads; by default the one that its config names."),
]


def hub_options(subfolder: str, revision: str | None, allow_pickle: bool) -> dict[str, Any]:
    """Those of the options that were given, as `SAE.from_pretrained` and others call them."""
    given = {"subfolder": subfolder, "revision": revision, "allow_pickle": allow_pickle}
    return {name: value for name, value in given.items() if value}


def folders_of(path: str) -> list[str]:
    """The folder of an SAE itself, or of a set those of its SAEs."""
    from hfsae.saved.sets import find_set

    found = find_set(path) if Path(path).is_dir() else None
    if found is None:
        return [path]
    found.refuse_missing()
    return [str(Path(path) / name) for name in found.names]
