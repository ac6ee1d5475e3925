"""Massive tokens: the few whose activation is many times longer than others', each time in the same directions.

Language models have them (Sun et al. 2024, Massive Activations in Large Language Models). What a feature reads of an
ordinary token can be a small share of such a token's length. So where a threshold rules, hundreds of features fire
there that have nothing to do with it. What they write together is far off. A short run hardly sees any.
"""

import torch
from torch import Tensor

# A token is massive where it is longer than so many times nine tenths of the tokens are. The longest of others was at
# most 1.5 times as long at the MLPs that were looked at, the massive ones of SmolLM2-135M 2.2 to 3.2 times.
_TIMES_THE_USUAL, _USUAL = 2, 0.9
# So many directions are kept at most. Massive tokens of SmolLM2-135M lie in two.
_MOST = 8


class MassiveTokens:
    """Directions of the massive tokens that a run has seen, layer by layer.

    Args:
        d_in: Width of what is read, all layers together.
        n_layers: How many layers it is of.
        device: Where the directions live.
    """

    def __init__(self, d_in: int, n_layers: int = 1, *, device: torch.device | str = "cpu"):
        self.directions = torch.zeros(n_layers, _MOST, d_in // n_layers, dtype=torch.float32, device=device)
        """(n_layers, 8, d_in / n_layers), orthonormal in each layer; 0 where none is found yet."""

    def see(self, rows: Tensor) -> Tensor:
        """Keeps the directions of massive tokens, less the mean, while what is new in one is as long as others are.

        Args:
            rows: (N, d_in).

        Returns:
            (N,) bool, which are massive in any layer: fewer than a tenth of them in each.
        """
        found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        for layer, (read, directions) in enumerate(
            zip(rows.float().chunk(len(self.directions), 1), self.directions, strict=True)
        ):
            lengths = read.norm(dim=1)
            usual = lengths.quantile(_USUAL)
            massive = lengths > _TIMES_THE_USUAL * usual
            centred = read[massive] - read.mean(0)
            for place in (directions == 0).all(1).nonzero()[: len(centred), 0].tolist():
                new = self.without(centred, layer)
                longest = new[new.norm(dim=1).argmax()]
                if longest.norm() < usual:
                    break
                directions[place] = longest / longest.norm()
            found |= massive
        return found

    def without(self, rows: Tensor, layer: int) -> Tensor:
        """Rows (N, width of the layer) less their part in its directions; the same bit for bit where it has none."""
        directions = self.directions[layer]
        return rows - (rows @ directions.T) @ directions


def directions_apart(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Directions in which massive tokens are so long that no other token comes near.

    One alone makes a token massive, and the longest token lies more than twice as far out on it as any ordinary one.

    Args:
        rows: (N, d).

    Returns:
        (m, d), m at most 8, orthonormal, in float32: the longest token is ahead on each, not behind. And (N,) bool,
        which tokens are ordinary.
    """
    seen = MassiveTokens(rows.shape[1], device=rows.device)
    massive = seen.see(rows)
    found = seen.directions[0][(seen.directions[0] != 0).any(1)]
    if not len(found):
        return found, ~massive
    rows = rows.float()
    usual = rows.norm(dim=1).quantile(_USUAL)
    along = (rows - rows[~massive].mean(0)) @ found.T
    longest = along[massive].gather(0, along[massive].abs().argmax(0, keepdim=True))[0]
    apart = longest.abs() > _TIMES_THE_USUAL * torch.maximum(along[~massive].abs().amax(0), usual)
    return (found * longest.sign().unsqueeze(1))[apart], ~massive
