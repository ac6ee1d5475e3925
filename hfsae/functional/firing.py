"""Which features are dead: they have not fired for a window of tokens, counted over all processes."""

from typing import Any

import torch
from torch import Tensor

# Dead features are worked on in multiples of so many: products run at full speed where a row is a multiple of 64 bytes
# (4096 × 768 times 768 × 1229 float32 numbers take a CPU 57 ms, times 768 × 1232 40 ms).
_EVEN_WIDTH = 16
# On a GPU by powers of two from this on: for each number of them a step is recorded once.
_LEAST_RECORDED = 64


class FiringCounter:
    """Tokens since each feature last fired, and how often it fired lately.

    Args:
        n_features: Width of the SAE.
        window: Tokens without firing after which a feature is dead.
        sampling_steps: Steps over which densities are counted before the count starts again.
        device: Where the counters live.
    """

    def __init__(self, n_features: int, *, window: int, sampling_steps: int, device: torch.device | str = "cpu"):
        self._window = window
        self._sampling_steps = sampling_steps
        self.tokens_since_fired = torch.zeros(n_features, dtype=torch.int64, device=device)
        self._fired = torch.zeros(n_features, dtype=torch.int64, device=device)
        self._tokens = 0
        self._steps = 0

    def count(self, tokens_firing: Tensor, n_tokens: int) -> None:
        """Takes in a step: on how many of its tokens, over all processes, each feature fired."""
        if self._steps == self._sampling_steps:
            self._fired.zero_()
            self._tokens = self._steps = 0
        self.tokens_since_fired += n_tokens
        self.tokens_since_fired.masked_fill_(tokens_firing > 0, 0)
        self._fired += tokens_firing
        self._tokens += n_tokens
        self._steps += 1

    @property
    def dead(self) -> Tensor:
        """(n_features,) bool."""
        return self.tokens_since_fired >= self._window

    @property
    def density(self) -> Tensor:
        """(n_features,) share of tokens on which each feature fired in the current sampling window."""
        return self._fired / max(self._tokens, 1)

    def revive(self, features: Tensor) -> None:
        """Restarts the clock of revived features."""
        self.tokens_since_fired[features] = 0

    def state_dict(self) -> dict[str, Any]:
        """Counters: tensors, and whole numbers."""
        return {
            "tokens_since_fired": self.tokens_since_fired,
            "fired": self._fired,
            "tokens": self._tokens,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state."""
        self.tokens_since_fired.copy_(state["tokens_since_fired"])
        self._fired.copy_(state["fired"])
        self._tokens, self._steps = int(state["tokens"]), int(state["steps"])


def worked_on(n_dead: int, device: torch.device, n_features: int) -> int:
    """On how many features a step works where so many are dead."""
    if device.type == "cpu":
        return min(n_dead + -n_dead % _EVEN_WIDTH, n_features)
    return min(max(_LEAST_RECORDED, 1 << (n_dead - 1).bit_length()) if n_dead else 0, n_features)
