"""`hfsae catalogue`: the well-known published SAEs, and how each is loaded."""

import argparse
import json
from dataclasses import asdict


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares what to look for."""
    parser.add_argument("words", nargs="*", help="words of the name, repository, model, format or place")
    parser.add_argument("--base-model", help="Hub id of the language model")
    parser.add_argument("--format", help="name of the format, such as 'Gemma Scope'")
    parser.add_argument("--architecture", help="topk, jumprelu, ...")
    parser.add_argument("--json", action="store_true", help="print everything that is known, as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints one line a release."""
    from hfsae.interop.catalogue import search

    wanted = {"base_model": args.base_model, "format": args.format, "architecture": args.architecture}
    found = search(" ".join(args.words), **wanted)
    if args.json:
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
