"""`hfsae dashboard`: the features of a saved SAE on one page."""

from pathlib import Path
from typing import Annotated, Literal

from hfsae.cli.measuring_options import OnHub, Reading, SAESource, folders_of
from hfsae.command_line import option

Prompts = Annotated[list[str] | None, option("--text", "A prompt, to see which features fire where; may be repeated.")]
Labels = Annotated[
    str | None, option("--labels", "Labels that the page saved; they become labels.json where there is none.")
]
Write = Annotated[
    bool,
    option(
        "--write",
        "Let what is shown of another text or model, and other labels, replace what lies beside the weights. With "
        "--max_tokens or --bf16, collect features again.",
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
    match: Annotated[
        list[str] | None,
        option(
            "--match",
            "Another SAE of this place (a folder, or org/name/subfolder@revision), whose features that are the same "
            "are linked; may be repeated.",
        ),
    ] = None,
    map_method: Annotated[
        Literal["pca", "umap"],
        option("--map", "How the map lays features out; umap needs the package umap-learn."),
    ] = "pca",
    *,
    on_hub: OnHub,
    reading: Reading,
) -> int:
    """Collects what is missing and writes the page."""
    from hfsae.dashboard import make_dashboard

    folders = [path] if on_hub.subfolder else folders_of(path)
    if folders != [path] and (output or labels or match):
        raise ValueError(
            f"{path} is a set, of which each SAE gets a page beside it: --output, --labels and --match are of one."
        )
    for folder in folders:
        page = make_dashboard(
            folder,
            output,
            texts=text or [],
            labels=labels,
            match=match or [],
            map_method=map_method,
            write=write,
            **reading.keywords(),
            **on_hub.keywords(),
        )
        print(f"wrote {page} ({_size(page):.1f} MB)")
    return 0


def _size(page: Path) -> float:
    """Megabytes of the page and of the pieces that belong to it."""
    return sum(path.stat().st_size for path in [page, *page.parent.glob("features-*.js")]) / 1e6
