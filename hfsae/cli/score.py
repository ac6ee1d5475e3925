"""`hfsae score`: how well features tell concepts, what absorbs them, and how sure that is."""

from typing import Annotated

import typer

from hfsae.cli.measuring_options import BaseModel, OnHub
from hfsae.command_line import option, whole_number

_TEXT = "Text and labels"

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SAE...",
        help="Folders of SAEs, or Hub repositories (org/name/subfolder@revision); several are compared.",
    ),
]


def run(
    paths: Sources,
    only: Annotated[
        list[str] | None,
        option(
            "--only",
            "This kind of score: tokens, documents or absorption; may be repeated. By default all.",
            metavar="KIND",
        ),
    ] = None,
    dataset_name: Annotated[
        str | None,
        option(
            "--dataset_name",
            "Text whose tokens are labelled; by default Python's standard library. --dataset for short.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    dataset_config: Annotated[
        str | None, option("--dataset_config", "Configuration of that dataset.", rich_help_panel=_TEXT)
    ] = None,
    dataset_split: Annotated[
        str | None,
        option(
            "--dataset_split", "Split of that dataset; by default train. --split for short.", rich_help_panel=_TEXT
        ),
    ] = None,
    concepts: Annotated[
        str | None,
        option(
            "--concepts",
            'JSON file of concepts, {"name": "regular expression"}; by default 22 of Python source.',
            rich_help_panel=_TEXT,
        ),
    ] = None,
    labelled: Annotated[
        str | None,
        option(
            "--labelled",
            "Dataset of labelled documents, in place of the sets that come along.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    labelled_config: Annotated[
        str | None, option("--labelled_config", "Configuration of that dataset.", rich_help_panel=_TEXT)
    ] = None,
    labelled_split: Annotated[
        str | None,
        option(
            "--labelled_split",
            "Split of that dataset; by default train. Probes are fitted on a part of it and measured on the rest.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    label_column: Annotated[str, option("--label_column", "Its column of labels.", rich_help_panel=_TEXT)] = "label",
    text_column: Annotated[
        str | None,
        option("--text_column", "The column of texts of what is named; by default found.", rich_help_panel=_TEXT),
    ] = None,
    max_tokens: Annotated[
        int,
        option(
            "--max_tokens",
            "Tokens to choose units on, and as many to measure on. --tokens for short.",
            parser=whole_number,
            metavar="<int>",
            rich_help_panel=_TEXT,
        ),
    ] = 30_000,
    min_probe_f1: Annotated[
        float,
        option("--min_probe_f1", "Absorption is told of concepts of which a linear probe has this F1."),
    ] = 0.8,
    draws: Annotated[int, option("--draws", "Draws of the bootstrap over documents.")] = 1000,
    seed: Annotated[int, option("--seed", "Of the draws.")] = 0,
    json_file: Annotated[str | None, option("--json_file", "Write all figures into this file as well.")] = None,
    write: Annotated[bool, option("--write", "Write scores.json beside the weights, and the card again.")] = False,
    base_model: BaseModel = None,
    *,
    on_hub: OnHub,
) -> int:
    """Scores each SAE and prints the figures; of several also an order, where it counts."""
    from hfsae.scores.score_saved import score_saved

    score_saved(
        paths,
        tell=print,
        kinds=only or None,
        dataset=dataset_name,
        dataset_config=dataset_config,
        split=dataset_split,
        concepts=concepts,
        labelled=labelled,
        labelled_config=labelled_config,
        labelled_split=labelled_split,
        label_column=label_column,
        text_column=text_column,
        base_model=base_model,
        json_file=json_file,
        write=write,
        max_tokens=max_tokens,
        least_f1=min_probe_f1,
        n_draws=draws,
        seed=seed,
        **on_hub.keywords(),
    )
    return 0
