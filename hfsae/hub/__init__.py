"""Sharing SAEs: cards generated from what was measured, pushes of one or many, repositories with many.

`write_card("runs/sae")` writes README.md and its pictures beside the weights; `render_card` gives the card alone.
`push_sae` and `push_saes` publish; `list_saes` and `find_saes` look. `hfsae.saved` loads many and verifies a card.
"""

from hfsae.hub.card import render_card, write_card
from hfsae.hub.errors import PushError
from hfsae.hub.sae_entries import SAEEntry, zoo_name
from hfsae.hub.zoo import find_saes, list_saes, push_sae, push_saes

__all__ = [
    "PushError",
    "SAEEntry",
    "find_saes",
    "list_saes",
    "push_sae",
    "push_saes",
    "render_card",
    "write_card",
    "zoo_name",
]
