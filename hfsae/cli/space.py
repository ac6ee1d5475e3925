"""`hfsae space`: the dashboard as a static Space of the Hub."""

from typing import Annotated

from hfsae.cli.dashboard import Labels, Prompts, TokensToRead, Write
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
    hub_options,
)
from hfsae.command_line import option


def run(
    path: SAESource,
    output: Annotated[str, option("--output", "Folder to write.")],
    title: Annotated[str | None, option("--title", "What the Space is called; by default as the SAE.")] = None,
    repo_id: Annotated[
        str | None, option("--repo_id", "Hub repository of the SAE, for the Space to be listed there.")
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
    """Collects what is missing and writes the folder."""
    from hfsae.dashboard import gather, write_space

    material = gather(
        path,
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
    )._asdict()
    if title:
        material["title"] = title
    folder = write_space(output=output, repo_id=repo_id, **material)
    print(f"wrote {folder}; publish it with: hf upload ORG/NAME {folder} --repo-type space")
    return 0
