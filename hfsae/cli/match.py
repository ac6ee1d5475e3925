"""`hfsae match`: which features of two SAEs are the same, and how many a second run finds again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hfsae.command_line import option

if TYPE_CHECKING:
    from hfsae.modeling import SAE

First = Annotated[
    str, typer.Argument(metavar="A", help="Folder of an SAE, or Hub repository (org/name/subfolder@revision).")
]
Second = Annotated[str, typer.Argument(metavar="B", help="Another one of the same place.")]


def run(
    first: First,
    second: Second,
    top: Annotated[int, option("--top", "How many of the closest pairs are shown.")] = 10,
    draws: Annotated[int, option("--draws", "Draws of the bootstrap.")] = 1000,
    seed: Annotated[int, option("--seed", "Of the draws, and of the random directions that tell chance.")] = 0,
    json_file: Annotated[
        str | None, option("--json_file", "Write the figures and all pairs into this file as well.")
    ] = None,
    write: Annotated[
        bool, option("--write", "Write the stability of A into its scores.json, and its card again.")
    ] = False,
) -> int:
    """Prints how alike the features are, and the closest pairs."""
    from hfsae.folders import can_be_file
    from hfsae.saving import write_json
    from hfsae.scores.match_saved import can_stand_on_card, put_on_card
    from hfsae.scores.matching import SAME, match_features, starts_are_known

    if top < 0:
        raise ValueError(f"--top {top}: expected 0 pairs or more.")
    if json_file:
        can_be_file(json_file)
    saes = [_loaded(source) for source in (first, second)]
    if write:
        can_stand_on_card(first, *saes)
    found = match_features(*saes, n_draws=draws, seed=seed)
    print(f"{len(found.first):,} pairs of features, by the cosine of their decoder rows (95 % intervals over pairs)")
    print(f"mean cosine                {found.mean_cosine}; random directions have {found.chance:.3f}")
    print(f"cosine of {SAME} or more     {found.shared}")
    print(f"  and of the encoder rows  {found.shared_by_both}")
    if found.objection is not None:
        print(f"this does not count as stability: {found.objection}")
    elif not starts_are_known(*saes):
        print("whether this counts as stability is not known: what they started from is not recorded")
    else:
        print(f"stability                  {found.stability}")
    for row in found.cosines.argsort(descending=True, stable=True)[:top].tolist():
        print(f"  {int(found.first[row])} and {int(found.second[row])}: {float(found.cosines[row]):.3f}")
    if write:
        print(f"wrote {put_on_card(first, saes[0], second, saes[1], found)} and the card beside it")
    if json_file:
        pairs = zip(found.first.tolist(), found.second.tolist(), found.cosines.tolist(), strict=True)
        write_json(Path(json_file), {**found.recorded(), "pairs": [list(pair) for pair in pairs]})
        print(f"wrote {json_file}")
    return 0


def _loaded(source: str) -> "SAE":
    from hfsae.modeling import SAE
    from hfsae.sae_folders import place_of

    place, where = place_of(source)
    return SAE.from_pretrained(place, **where)
