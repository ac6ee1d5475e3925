"""Options that several commands have: where an SAE lies, and the language model and the text to measure it on."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from hfsae.command_line import option, whole_number

_MEASURING = "Measuring"
_HUB = "Hub"
_IN_PYTHON = {"model_name_or_path": "model", "dataset_name": "dataset", "dataset_split": "split"}


def tokens(purpose: str) -> Any:
    """The option that says on how many tokens something is done."""
    return option(
        "--max_tokens",
        f"{purpose} --tokens for short.",
        parser=whole_number,
        metavar="<int>",
        rich_help_panel=_MEASURING,
    )


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
        "Language model to measure it in; by default the one that its config names. Of several models one name for "
        "each source, with commas. --model for short.",
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
InBfloat16 = Annotated[
    bool,
    option(
        "--bf16",
        "Run a float32 language model in bfloat16, as training reads its text.",
        rich_help_panel=_MEASURING,
    ),
]
TokensToCollect = Annotated[int, tokens("Tokens to read where features were not collected yet.")]
BaseModel = Annotated[
    str | None,
    option("--base_model", "Language model that the SAE reads; by default the one that its config names."),
]


@dataclass(frozen=True)
class _Options:
    """Options that belong together; each field is one."""

    def keywords(self) -> dict[str, Any]:
        """Their values by the keywords that functions have for them."""
        return {_IN_PYTHON.get(one.name, one.name): getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True)
class OnHub(_Options):
    """Which SAE of a repository."""

    subfolder: Subfolder = ""
    revision: Revision = None
    allow_pickle: AllowPickle = False

    def keywords(self) -> dict[str, Any]:
        """The given ones alone: a local folder takes none."""
        return {name: value for name, value in super().keywords().items() if value}


@dataclass(frozen=True)
class ModelAndText(_Options):
    """A language model, and a text that it reads."""

    model_name_or_path: Model = None
    dataset_name: Dataset = None
    dataset_config: DatasetConfig = None
    dataset_split: Split = None


@dataclass(frozen=True)
class Measuring(ModelAndText):
    """The language model and the text that an SAE is measured on."""

    max_tokens: Annotated[int | None, tokens("Tokens to measure on; by default as many as were recorded.")] = None
    batch_size: BatchSize = 16


@dataclass(frozen=True)
class Reading(Measuring):
    """The language model and the text in which features are looked at."""

    max_tokens: Annotated[int | None, tokens("Tokens to read where features are collected; by default 1,000,000.")] = (
        None
    )
    bf16: InBfloat16 = False


@dataclass(frozen=True)
class Collecting(_Options):
    """The language model and the text from which features are collected, where they were not yet."""

    base_model: BaseModel = None
    dataset_name: Dataset = None
    dataset_config: DatasetConfig = None
    dataset_split: Split = None
    max_tokens: TokensToCollect = 1_000_000


def folders_of(path: str) -> list[str]:
    """The folder of an SAE itself, or of a set those of its SAEs."""
    from hfsae.saved.sets import find_set

    found = find_set(path) if Path(path).is_dir() else None
    if found is None:
        return [path]
    found.refuse_missing()
    return [str(Path(path) / name) for name in found.names]
