"""`hfsae diff`: which features the sources of a crosscoder share, and which one of them has alone."""

from dataclasses import dataclass
from typing import Annotated

import typer

from hfsae.cli.measuring_options import Measuring, tokens
from hfsae.command_line import option

_CLASSES = "Classes"
_SHOWN_TOKENS = 6

Folder = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a crosscoder.")]


@dataclass(frozen=True)
class Comparing(Measuring):
    """The language models and the text that sources are compared on."""

    max_tokens: Annotated[int, tokens("Tokens to compare on.")] = 200_000


def run(
    path: Folder,
    output: Annotated[
        str | None, option("--output", "Another folder for the results; the card is then left alone.")
    ] = None,
    top: Annotated[int, option("--top", "How many features of each class the page shows with examples.")] = 20,
    absent: Annotated[
        float,
        option(
            "--absent",
            "A source whose decoder row is shorter than this part of the longest lacks the feature, by norms.",
            rich_help_panel=_CLASSES,
        ),
    ] = 0.2,
    shared: Annotated[
        float,
        option("--shared", "Sources whose rows are all this long, or longer, share it.", rich_help_panel=_CLASSES),
    ] = 0.8,
    error_ratio: Annotated[
        float,
        option(
            "--error_ratio",
            "A source has a feature after all where this part of it lies in its error.",
            rich_help_panel=_CLASSES,
        ),
    ] = 0.2,
    reconstruction_ratio: Annotated[
        float,
        option(
            "--reconstruction_ratio",
            "Likewise where this part lies in what other features write there.",
            rich_help_panel=_CLASSES,
        ),
    ] = 0.5,
    *,
    comparing: Comparing,
) -> int:
    """Compares, and prints the counts and what features of one source fire on."""
    from hfsae.dashboard.comparison import diff_saved
    from hfsae.diffing.classes import Thresholds, only

    written = diff_saved(
        path,
        **comparing.keywords(),
        n_features=top,
        thresholds=Thresholds(absent, shared, error_ratio, reconstruction_ratio),
        output=output,
    )
    found = written.found
    print(found.table())
    for kind in map(only, found.sources):
        told = dict.fromkeys(found.of(kind)[:top], kind)
        told |= dict.fromkeys(set(found.of(kind, "scaling")[:top]) - told.keys(), f"{kind} by scaling")
        for feature, called in told.items():
            tokens = " ".join(map(repr, written.examples.get(feature, [])[:_SHOWN_TOKENS]))
            print(f"{called} {feature}: {tokens}")
    for file in written.files:
        print(f"wrote {file}")
    return 0
