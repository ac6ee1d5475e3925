"""`hfsae dashboard`: the features of a saved SAE on one page."""

from pathlib import Path
from typing import Annotated

from hfsae.cli.measuring_options import (
    AllowPickle,
    BatchSize,
    Dataset,
    DatasetConfig,
    Model,
    Revision,
    SAESource,
    Split,
    Subfolder,
    folders_of,
    hub_options,
)
from hfsae.command_line import option, whole_number

Prompts = Annotated[list[str] | None, option("--text", "A prompt, to see which features fire where; may be repeated.")]
Labels = Annotated[
    str | None, option("--labels", "Labels that the page saved; they become labels.json where there is none.")
]
Write = Annotated[
    bool,
    option(
        "--write",
        "Let what is shown of another text or model, and other labels, replace what lies beside the weights.",
    ),
]
TokensToRead = Annotated[
    int,
    option(
        "--max_tokens",
        "Tokens to read. --tokens for short.",
        parser=whole_number,
        metavar="<int>",
        rich_help_panel="Measuring",
    ),
]


def run(
    path: SAESource,
    output: Annotated[
        str | None,
        option(
            "--output",
            "A file that ends in .html, or a folder for large SAEs and the web; by default dashboard.html beside it.",
        ),
    ] = None,
    text: Prompts = None,
    labels: Labels = None,
    write: Write = False,
    subfolder: Subfolder = "",
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    model_name_or_path: Model = None,
    dataset_name: Dataset = None,
    dataset_config: DatasetConfig = None,
    dataset_split: Split = None,
    max_tokens: TokensToRead = 1_000_000,
    batch_size: BatchSize = 16,
) -> int:
    """Collects what is missing and writes the page."""
    from hfsae.dashboard import make_dashboard

    folders = [path] if subfolder else folders_of(path)
    if folders != [path] and (output or labels):
        raise ValueError(
            f"{path} is a set, of which each SAE gets a page beside it: --output and --labels are of one."
        )
    for folder in folders:
        page = make_dashboard(
            folder,
            output,
            texts=text or [],
            labels=labels,
            write=write,
            model=model_name_or_path,
            dataset=dataset_name,
            dataset_config=dataset_config,
            split=dataset_split,
            max_tokens=max_tokens,
            batch_size=batch_size,
            **hub_options(subfolder, revision, allow_pickle),
        )
        print(f"wrote {page} ({_size(page):.1f} MB)")
    return 0


def _size(page: Path) -> float:
    """Megabytes of the page and of the pieces that belong to it."""
    return sum(path.stat().st_size for path in [page, *page.parent.glob("features-*.js")]) / 1e6
