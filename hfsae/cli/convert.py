"""`hfsae convert`: SAEs of other projects into hfsae's format, and into those of other projects."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hfsae.command_line import option


def run(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder, file, Hub repository or release of the catalogue.")
    ],
    destination: Annotated[
        str,
        typer.Argument(metavar="DESTINATION", help="Folder to write into; of many SAEs each keeps its place in it."),
    ],
    to: Annotated[
        str,
        option(
            "--to",
            "hfsae, saelens, sparsify, llamascopium, gemma-scope-2, clt-training, circuit-tracer, or a package's own.",
        ),
    ] = "hfsae",
    subfolder: Annotated[
        str,
        option(
            "--subfolder",
            "Only this folder or file of the source, or this SAE of the release.",
            show_default=False,
        ),
    ] = "",
    revision: Annotated[str | None, option("--revision", "Branch, tag or commit.")] = None,
    allow_pickle: Annotated[bool, option("--allow_pickle", "Open pickled weights, as plain data alone.")] = False,
    settings: Annotated[
        list[str] | None,
        option(
            "--set",
            "A config field that the source does not say, such as hook_point=resid_post.19; may be repeated.",
            metavar="FIELD=VALUE",
        ),
    ] = None,
) -> int:
    """Converts, writes the cards of hfsae's format, and prints the folders."""
    from hfsae.saved.convert import convert

    written = convert(
        source,
        destination,
        to,
        subfolder=subfolder,
        allow_pickle=allow_pickle,
        given=_fields(settings or []),
        revision=revision,
    )
    if to == "hfsae":
        _write_cards(Path(destination), written)
    for folder in written:
        print(folder)
    return 0


def _fields(settings: list[str]) -> dict[str, Any]:
    import yaml

    fields = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes FIELD=VALUE, got {setting!r}.")
        fields[name] = yaml.safe_load(value)
    return fields


def _write_cards(root: Path, written: list[Path]) -> None:
    """A card for every SAE; the index and the table of them all where there are several."""
    from hfsae.hub.card import write_card
    from hfsae.hub.listing import write_listing_beside
    from hfsae.hub.zoo import list_saes

    for folder in written:
        write_card(folder)
    if len(written) > 1:
        write_listing_beside(root, list_saes(root))
