"""`hfsae card`: writes a model card again, or shows it."""

from typing import Annotated

from hfsae.cli.measuring_options import Folder
from hfsae.command_line import option


def run(
    path: Folder, only_print: Annotated[bool, option("--print", "Print the card instead; nothing is written.")] = False
) -> int:
    """Renders the card from what stands in the folder."""
    from pathlib import Path

    from hfsae.evaluation.saved_set import SET_FILE
    from hfsae.hub.card import CARD_FILE, card_of, write_card
    from hfsae.hub.listing import listing_of, write_listing_beside
    from hfsae.hub.set_plot import draw_set
    from hfsae.hub.zoo import list_saes

    root = Path(path)
    if (root / SET_FILE).is_file():
        entries = list_saes(root)
        if only_print:
            print(listing_of(root, entries))
        else:
            for entry in entries:
                print(f"wrote {write_card(root / entry.name)}")
            draw_set(root)
            write_listing_beside(root, entries)
            print(f"wrote {root / CARD_FILE}")
    elif only_print:
        print(card_of(path))
    else:
        print(f"wrote {write_card(path)}")
    return 0
