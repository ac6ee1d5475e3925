"""Influence, scores and pruning of attribution graphs.

The definitions are those of Ameisen et al. 2025, as circuit-tracer computes them (appendices on pruning and on
scores).

"Circuit tracing: revealing computational graphs in language models",
https://transformer-circuits.pub/2025/attribution-graphs/methods.html

A is the matrix of edges, rows targets and columns sources. Â is its absolute values, every row divided by its sum. B =
Â + Â² + ... counts all paths, and a graph has no circle, so the sum ends. The influence of a node on the logits is
wᵀB, where w has the logits' probabilities.
"""

import torch
from torch import Tensor

_LEAST = 1e-10

ROWS_AT_ONCE = 256
"""Rows of edges that are looked at together, so that memory stays that of the rows themselves."""


def normalised(edges: Tensor) -> Tensor:
    """Absolute values, every row divided by its sum; rows of zeros stay."""
    sizes = edges.abs()
    return sizes / sizes.sum(1, keepdim=True).clamp(min=_LEAST)


def influence(edges: Tensor, weights: Tensor) -> Tensor:
    """wᵀ(Â + Â² + ...): how much of what reaches the logits goes through each node.

    Args:
        edges: (n, n).
        weights: (n,), the logits' probabilities at logits, 0 elsewhere.
    """
    shares = normalised(edges)
    step = weights @ shares
    total = torch.zeros_like(step)
    for _ in range(len(edges) + 1):
        if not step.any():
            return total
        total = total + step
        step = step @ shares
    raise ValueError("this graph has a circle: influence is defined where every path ends.")


def influence_on_logits(logits: Tensor, rows: Tensor, owners: Tensor, levels: Tensor, weights: Tensor) -> Tensor:
    """The same while only some nodes have their edges: (columns,).

    No edge goes from a level to itself or an earlier one. So one look at every row is enough, the latest level first:
    what a feature has gathered by then is all that it will.

    Args:
        logits: (T, columns), edges into logits.
        rows: (n, columns), edges into the features that were traced.
        owners: (n,) int64, the column that each of these features has as a source.
        levels: (n,) int64, which level each is of; later ones have larger numbers.
        weights: (T,).
    """
    total = weights @ normalised(logits)
    for level in levels.unique().flip(0):
        for part in (levels == level).nonzero()[:, 0].split(ROWS_AT_ONCE):
            total = total + total[owners[part]] @ normalised(rows[part])
    return total


def replacement_score(influences: Tensor, is_embedding: Tensor, is_error: Tensor) -> float:
    """Influence of embeddings / (influence of embeddings + of errors): what goes all its way through features."""
    embeddings, errors = influences[is_embedding].sum(), influences[is_error].sum()
    return float(embeddings / (embeddings + errors).clamp(min=_LEAST))


def completeness_score(edges: Tensor, influences: Tensor, weights: Tensor, is_error: Tensor) -> float:
    """Σ (influence + weight) · (share of inputs that are no errors) / Σ (influence + weight), over all nodes."""
    explained = 1 - normalised(edges)[:, is_error].sum(1)
    output = influences + weights
    return float((explained * output).sum() / output.sum())


def threshold_of(scores: Tensor, share: float) -> Tensor:
    """The score of the last one that is needed, largest first, for their sum to be a share of the whole.

    For the whole all that are not 0 are needed. A sum that is rounded is the whole long before the last of them.
    """
    ordered = scores.flatten().sort(descending=True).values
    if share == 1:
        return ordered[max(int(ordered.count_nonzero()) - 1, 0)]
    cumulative = ordered.cumsum(0) / ordered.sum()
    reached = torch.searchsorted(cumulative, torch.tensor(share, dtype=cumulative.dtype, device=cumulative.device))
    return ordered[min(int(reached), len(ordered) - 1)]


def cumulative_influence(influences: Tensor) -> Tensor:
    """For every node the share that it and all with more influence have together: small for the strongest."""
    order = influences.argsort(descending=True, stable=True)
    result = torch.empty_like(influences)
    result[order] = influences[order].cumsum(0) / influences.sum().clamp(min=_LEAST)
    return result


def kept_by_pruning(
    edges: Tensor, weights: Tensor, is_fixed: Tensor, is_feature: Tensor, node_share: float, edge_share: float
) -> tuple[Tensor, Tensor]:
    """Which nodes (n,) and edges (n, n) stay.

    Nodes stay that together have `node_share` of the influence, embeddings and logits in any case. Of the edges
    between them stay the ones that have `edge_share` of Â[t, s] · (influence of t + its weight). Then features and
    errors without an edge out, and features without an edge in, go, until there are none.

    Args:
        edges: (n, n).
        weights: (n,), as for `influence`.
        is_fixed: (n,) bool, embeddings and logits.
        is_feature: (n,) bool.
        node_share: From 0 to 1.
        edge_share: From 0 to 1.
    """
    influences = influence(edges, weights)
    nodes = (influences >= threshold_of(influences, node_share)) | is_fixed
    pruned = torch.where(nodes[:, None] & nodes[None, :], edges, 0.0)
    scores = normalised(pruned) * (influence(pruned, weights) + weights)[:, None]
    kept = scores >= threshold_of(scores, edge_share)
    while True:
        before = nodes
        kept = kept & nodes[:, None] & nodes[None, :]
        nodes = nodes & (is_fixed | (kept.any(0) & (~is_feature | kept.any(1))))
        if bool((nodes == before).all()):
            return nodes, kept
