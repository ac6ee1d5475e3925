"""`hfsae space`: the dashboard as a static Space of the Hub."""

from typing import Annotated

from hfsae.cli.dashboard import Labels, Prompts, Write
from hfsae.cli.measuring_options import OnHub, Reading, SAESource
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
    *,
    on_hub: OnHub,
    reading: Reading,
) -> int:
    """Collects what is missing and writes the folder."""
    from hfsae.dashboard import gather, write_space
    from hfsae.folders import can_be_folder

    can_be_folder(output)
    material = gather(
        path,
        texts=text or [],
        labels=labels,
        write=write,
        **reading.keywords(),
        **on_hub.keywords(),
    )._asdict()
    if title:
        material["title"] = title
    folder = write_space(output=output, repo_id=repo_id, **material)
    print(f"wrote {folder}; publish it with: hf upload ORG/NAME {folder} --repo-type space")
    return 0
