"""`Node`: one node of an attribution graph, in plain values."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["feature", "error", "embedding", "logit"]


@dataclass(frozen=True)
class Node:
    """One node.

    Attributes:
        kind: `"feature"`, `"error"` (what the features of a place leave out), `"embedding"` or `"logit"`.
        position: The token, from 0.
        value: A feature's activation; a logit less the mean of all, or a difference of two; else 0.
        layer: Of features and errors.
        source: The SAE of a feature; the place of an error.
        feature: Which feature of its SAE.
        token: The token id of embeddings and logits.
        against: The token that a logit is compared with; None where that is the mean of all.
        probability: Of a logit, 1 for a difference.
        label: What it is called: a token's text, or what people call the feature.
    """

    kind: Kind
    position: int
    value: float = 0.0
    layer: int | None = None
    source: str | None = None
    feature: int | None = None
    token: int | None = None
    against: int | None = None
    probability: float = 0.0
    label: str = ""

    @property
    def name(self) -> str:
        """What tells it from all others: `"mlp_in.2/17@5"`, `"error mlp_out@5"`, `"embedding@0"`, `"logit 33"`."""
        if self.kind == "feature":
            return f"{self.source}/{self.feature}@{self.position}"
        if self.kind == "error":
            return f"error {self.source}@{self.position}"
        if self.kind == "embedding":
            return f"embedding@{self.position}"
        return f"logit {self.token}" + ("" if self.against is None else f" - {self.against}")
