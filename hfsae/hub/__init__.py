"""Sharing SAEs: the model card that is generated from what was measured.

`write_card("runs/sae")` writes README.md and its pictures beside the weights; `render_card` gives the card alone.
"""

from hfsae.hub.card import render_card, write_card

__all__ = ["render_card", "write_card"]
