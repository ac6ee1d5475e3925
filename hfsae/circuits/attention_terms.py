"""Why a head looks where it does: its score before the softmax, as a sum of terms of two sources each.

A score is `scaling · q · k`. With norms held, q is an affine map of what makes the stream at the token that looks.
So is k at the token that is looked at. The score is then the sum of `scaling · q_i · k_j` over all pairs of sources;
biases count as one more source.
This is the QK attribution of Kamath et al. 2025, "Tracing attention computation through feature interactions"
(https://transformer-circuits.pub/2025/attention-qk/index.html).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from hfsae.circuits.attention import Scores
from hfsae.circuits.edges import AllFeatures, Backward
from hfsae.circuits.nodes import how_many, source_nodes
from hfsae.functional.gradients import gradients_on

if TYPE_CHECKING:
    from hfsae.circuits.graph import Graph
    from hfsae.circuits.replacement import LocalReplacement

BIASES = "biases"
"""What a term calls what no node makes."""

# Sources of the query whose terms are computed at once.
_ROWS = 1024


@dataclass(frozen=True)
class Term:
    """A part of a score.

    Attributes:
        query: The name of the node that makes the query's part, or `"biases"`.
        key: The name of the node that makes the key's part, or `"biases"`.
        value: What both add to the score.
    """

    query: str
    key: str
    value: float


@dataclass(frozen=True)
class AttentionTerms:
    """Why a head looks from one token at another.

    Attributes:
        layer: The layer.
        head: The head in it.
        query: The token that looks, from 0.
        key: The token that is looked at.
        probability: How much of the head's attention goes there.
        score: The model's score before the softmax, and before a cap where it has one.
        terms: The terms that are largest in size.
        left_out: The sum of all other terms.
        error: The score less the sum of all terms.
    """

    layer: int
    head: int
    query: int
    key: int
    probability: float
    score: float
    terms: list[Term]
    left_out: float
    error: float

    @classmethod
    def of(cls, values: dict[str, Any]) -> "AttentionTerms":
        """From plain values, as `dataclasses.asdict` gives them, and JSON."""
        return cls(**{**values, "terms": [Term(**term) for term in values["terms"]]})

    def __str__(self) -> str:
        head = f"layer {self.layer}, head {self.head}: {self.query} looks at {self.key}"
        rows = [f"{head} (probability {self.probability:.3f}, score {self.score:.3f})"]
        rows += [f"{term.value:+9.3f}  {term.query} × {term.key}" for term in self.terms]
        return "\n".join([*rows, f"{self.left_out:+9.3f}  all other terms"])


class Look(NamedTuple):
    """Where a head looks most.

    Attributes:
        layer: The layer.
        head: The head in it.
        key: The token that is looked at.
        probability: How much of the head's attention goes there.
    """

    layer: int
    head: int
    key: int
    probability: float


def looks(circuit: "LocalReplacement", query: int, n: int) -> list[Look]:
    """What `Graph.looks` gives."""
    query, n = _token(circuit, query), how_many(n)
    found = []
    for layer in range(circuit.n_layers):
        scores = circuit.scores_of(layer)
        best = scores.probabilities[0, :, query, : query + 1].max(-1)
        found += [
            Look(layer, head, key, value)
            for head, (value, key) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
        ]
    return sorted(found, key=lambda look: -look.probability)[:n]


def attention_terms(
    graph: "Graph", circuit: "LocalReplacement", layer: int, head: int, query: int, key: int | None, n: int
) -> AttentionTerms:
    """What `Graph.explain_attention` gives."""
    how_many(n)
    if not 0 <= layer < circuit.n_layers:
        raise ValueError(f"there is no layer {layer}: there are 0 to {circuit.n_layers - 1}.")
    scores = circuit.scores_of(layer)
    heads = scores.probabilities.shape[1]
    if not 0 <= head < heads:
        raise ValueError(f"there is no head {head} in layer {layer}: there are 0 to {heads - 1}.")
    query = _token(circuit, query)
    row = scores.probabilities[0, head, query]
    key = int(row.argmax()) if key is None else _token(circuit, key)
    if key > query or row[key] == 0:
        raise ValueError(f"head {head} of layer {layer} cannot look from token {query} at token {key}: it is masked.")
    _refuse_other_scores(scores, head, query)
    features = AllFeatures.of(circuit)
    module = circuit.attention_of(layer)
    own = head * scores.keys.shape[1] // heads
    made, constant = _made(circuit, features, module, (head, query), (own, key))
    queries, keys = (torch.cat([part, bias[:, None]], 1) for part, bias in zip(made, constant, strict=True))
    names = [node.name for node in source_nodes(circuit, features, graph.tokens)] + [BIASES]
    terms = _largest(scores.scaling * queries, keys, names, n)
    score = float(scores.of(head, query)[key])
    total = scores.scaling * float((queries.double().sum(1) * keys.double().sum(1)).sum())
    return AttentionTerms(
        *(layer, head, query, key, float(row[key]), score, terms),
        left_out=total - sum(term.value for term in terms),
        error=score - total,
    )


def _token(circuit: "LocalReplacement", position: int) -> int:
    n = len(circuit.ids)
    if not -n <= position < n:
        raise ValueError(f"there is no token {position}: there are 0 to {n - 1}.")
    return position % n


@gradients_on()
def _made(
    circuit: "LocalReplacement", features: AllFeatures, module: nn.Module, query: tuple[int, int], key: tuple[int, int]
) -> tuple[list[Tensor], list[Tensor]]:
    """What every source adds to a query and to a key, (d, columns) each, and what biases add, (d,) each.

    Args:
        circuit: The model at the prompt.
        features: All its features.
        module: The attention.
        query: Head and token.
        key: Head and token.
    """
    with circuit.watching(module) as seen:
        backward = Backward(circuit, features)
        given = list(seen)
        made = [
            backward.into(output, _one_hot(output, *place)) for output, place in zip(given, (query, key), strict=True)
        ]
    with circuit.watching(module) as seen, torch.no_grad():
        nothing = {place: torch.zeros_like(value)[None] for place, value in circuit.written().items()}
        circuit.run(nothing, torch.zeros_like(circuit.embeddings)[None])
        constant = [output[0, head, token] for output, (head, token) in zip(seen, (query, key), strict=True)]
    return [part.cpu() for part in made], [part.cpu() for part in constant]


def _one_hot(output: Tensor, head: int, token: int) -> Tensor:
    """(d, *shape), for each dimension of one head at one token a tensor of 0 but there."""
    width = output.shape[-1]
    chosen = output.new_zeros(width, *output.shape)
    chosen[torch.arange(width), 0, head, token, torch.arange(width)] = 1
    return chosen


def _largest(queries: Tensor, keys: Tensor, names: list[str], n: int) -> list[Term]:
    """The products of columns that are largest in size; rows of the whole matrix at a time."""
    found: list[Term] = []
    for start in range(0, queries.shape[1], _ROWS):
        part = queries[:, start : start + _ROWS].T @ keys
        best = part.abs().flatten().topk(min(n, part.numel())).indices
        for place in best.tolist():
            row, column = divmod(place, part.shape[1])
            if value := float(part[row, column]):
                found.append(Term(names[start + row], names[column], value))
        found = sorted(found, key=lambda term: -abs(term.value))[:n]
    return found


def _refuse_other_scores(scores: Scores, head: int, query: int) -> None:
    """Probabilities must be the softmax of the scores, but for what all keys have in common."""
    row, own = scores.probabilities[0, head, query], scores.capped(scores.of(head, query))
    seen = row > 1e-4
    difference = (row.log() - own)[seen]
    if difference.numel() and float(difference.max() - difference.min()) > 1e-3 * max(
        1.0, float(own[seen].abs().max())
    ):
        raise ValueError(
            "this attention adds something to its scores besides queries times keys (such as a bias by distance), so "
            "they are not the sum of terms of two sources."
        )
