"""`Node`: one node of an attribution graph, in plain values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from hfsae.circuits.edges import AllFeatures
    from hfsae.circuits.replacement import LocalReplacement

Kind = Literal["feature", "error", "embedding", "logit"]


def how_many(n: int) -> int:
    """A number of things to list; a negative one is refused, which would leave the last things out.

    Raises:
        ValueError: If it is negative.
    """
    if n < 0:
        raise ValueError(f"n is {n}: expected 0 or more.")
    return n


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


def source_nodes(
    replacement: "LocalReplacement", features: "AllFeatures", texts: Sequence[str], chosen: "Tensor | None" = None
) -> list[Node]:
    """What makes everything in a prompt: features, then errors place by place, then embeddings.

    Args:
        replacement: The model at the prompt.
        features: All its features.
        texts: The tokens' texts.
        chosen: (n,) int64, which of the features; None takes all.
    """
    layers, sources = replacement.layers, [replacement.sources[name] for name in features.names]
    whole = (features.source, features.positions, features.features, features.values)
    columns = whole if chosen is None else [column.cpu()[chosen] for column in whole]
    nodes = [
        Node("feature", position, value, layers[sources[number].reads], sources[number].owner, feature)
        for number, position, feature, value in zip(*(column.tolist() for column in columns), strict=True)
    ]
    nodes += [
        Node("error", position, layer=layers[place], source=str(place))
        for place in replacement.places
        for position in range(len(texts))
    ]
    return nodes + [
        Node("embedding", position, token=token, label=text)
        for position, (token, text) in enumerate(zip(replacement.ids.tolist(), texts, strict=True))
    ]
