"""`hfsae search`: features by what they mean: words, a passage, or texts with something and others without it."""

from typing import Annotated

import typer

from hfsae.cli.measuring_options import Collecting, OnHub, SAESource
from hfsae.command_line import option

_SETS = "Two sets of texts"


def run(
    path: SAESource,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Words, or a passage.")] = None,
    positive: Annotated[
        str | None,
        option("--positive", "Texts that have what is looked for: a file, a line or row each.", rich_help_panel=_SETS),
    ] = None,
    negative: Annotated[str | None, option("--negative", "Texts that lack it.", rich_help_panel=_SETS)] = None,
    marked: Annotated[
        bool,
        option("--marked", "It stands between << and >> in each positive text.", rich_help_panel=_SETS),
    ] = False,
    permutations: Annotated[
        int, option("--permutations", "Random dealings of the texts for p-values.", rich_help_panel=_SETS)
    ] = 1000,
    seed: Annotated[int, option("--seed", "Of the dealings and the folds.", rich_help_panel=_SETS)] = 0,
    top: Annotated[int, option("--top", "How many features of each kind.")] = 10,
    embeddings: Annotated[
        str | None,
        option(
            "--embeddings",
            "An encoder, by Hub id or folder: labels are found by what they mean too, and not by their words alone.",
        ),
    ] = None,
    prior: Annotated[
        float, option("--prior", "Tokens that the prior is worth by which a passage is compared with other text.")
    ] = 10.0,
    *,
    collecting: Collecting,
    on_hub: OnHub,
) -> int:
    """Prints the features that are found."""
    from hfsae.meaning import Embedder
    from hfsae.meaning.search_report import contrast_lines, word_lines
    from hfsae.saved.kept_features import SavedFeatures

    if (positive is None) != (negative is None):
        raise ValueError("--positive and --negative belong together: texts that have it, and texts that lack it.")
    if (text is None) == (positive is None):
        raise ValueError('say what to look for: words or a passage ("..."), or --positive FILE --negative FILE.')
    if marked and positive is None:
        raise ValueError("--marked is for what is marked in the texts of --positive, and there are none.")
    if embeddings is not None and text is None:
        raise ValueError("--embeddings is for words, which are compared with labels; two sets of texts need none.")
    opened = SavedFeatures(path, **collecting.keywords(), **on_hub.keywords())
    if positive is not None and negative is not None:
        lines = contrast_lines(
            opened, positive, negative, marked=marked, top=top, n_permutations=permutations, seed=seed
        )
    else:
        assert text is not None
        embed = None if embeddings is None else Embedder(embeddings)
        lines = word_lines(opened, text, top=top, prior=prior, embed=embed)
    for line in lines:
        print(line)
    return 0
