"""`hfsae convert`: SAEs of other projects into hfsae's format, and into those of SAELens, sparsify, circuit-tracer."""

import argparse
from pathlib import Path
from typing import Any


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what is converted, where to, and what the files do not say."""
    parser.add_argument("source", help="folder, file, Hub repository or release of the catalogue")
    parser.add_argument("destination", help="folder to write into; of many SAEs each keeps its place in it")
    parser.add_argument(
        "--to", choices=("hfsae", "saelens", "sparsify", "circuit-tracer"), default="hfsae", help="format to write"
    )
    parser.add_argument(
        "--subfolder", default="", help="only this folder or file of the source, or this SAE of the release"
    )
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--allow-pickle", action="store_true", help="open pickled weights, as plain data alone")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a config field that the source does not say, such as hook_point=resid_post.19; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Converts, writes the cards of hfsae's format, and prints the folders."""
    from hfsae.interop.convert import convert

    written = convert(
        args.source,
        args.destination,
        args.to,
        subfolder=args.subfolder,
        allow_pickle=args.allow_pickle,
        given=_fields(args.set),
        revision=args.revision,
    )
    if args.to == "hfsae":
        _write_cards(Path(args.destination), written)
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
