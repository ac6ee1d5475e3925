"""`hfsae card`: writes a model card again, or shows it."""

from typing import Annotated

from hfsae.cli.measuring import Folder
from hfsae.command_line import option


def run(
    path: Folder, only_print: Annotated[bool, option("--print", "Print the card instead; nothing is written.")] = False
) -> int:
    """Renders the card from what stands in the folder."""
    from hfsae.hub.card import card_of, write_card

    if only_print:
        print(card_of(path))
    else:
        print(f"wrote {write_card(path)}")
    return 0
