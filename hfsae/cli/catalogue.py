"""`hfsae catalogue`: the well-known published SAEs, and how each is loaded."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from hfsae.command_line import option


def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORDS", help="Words of the name, repository, model, format or place."),
    ] = None,
    base_model: Annotated[str | None, option("--base_model", "Hub id of the language model, or its name.")] = None,
    format: Annotated[str | None, option("--format", "Name of the format, such as 'Gemma Scope'.")] = None,
    architecture: Annotated[str | None, option("--architecture", "topk, jumprelu, ...")] = None,
    as_json: Annotated[bool, option("--json", "Print everything that is known, as JSON.")] = False,
) -> int:
    """Prints one line a release."""
    from hfsae.interop.catalogue import search

    found = search(" ".join(words or ()), base_model=base_model, format=format, architecture=architecture)
    if as_json:
        print(json.dumps([asdict(release) for release in found], indent=2))
        return 0
    for release in found:
        how_many = "" if release.n_saes is None else f"{release.n_saes} SAEs, "
        tried = "" if release.tried else "  (not tried on its files)"
        places = " → ".join(release.places) if release.places[:1] == ["mlp_in"] else ", ".join(release.places)
        print(f"{release.name}\n  {release.repo or release.source}: {release.base_model}, {places}")
        kind = f"{release.format}, {release.architecture}" if release.architecture else release.format
        print(f"  {how_many}{kind}, licence {release.licence or 'not recorded'}{tried}")
    if not found:
        print("no release fits.")
    return 0
