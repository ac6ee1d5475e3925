"""Sharing SAEs: the model card that is generated from what was measured.

    from hfsae.hub import write_card
    write_card("runs/sae")  # README.md and its pictures, beside the weights
"""

from hfsae.hub.card import render_card, write_card

__all__ = ["render_card", "write_card"]
