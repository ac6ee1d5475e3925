"""Influence, scores and pruning, against inverses of matrices and a graph that is worked out by hand."""

import pytest
import torch

from hfsae import trace
from hfsae.circuits import influence
from tests.circuits.tiny import IDS, model_of, transcoders


def random_graph(n: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Edges from earlier to later nodes, and weights at the last two."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randn(n, n, generator=generator, dtype=torch.float64).tril(-1)
    edges[:4] = 0
    weights = torch.zeros(n, dtype=torch.float64)
    weights[-2:] = torch.tensor([0.7, 0.2])
    return edges, weights


def by_inverse(edges: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    sizes = edges.abs()
    shares = sizes / sizes.sum(1, keepdim=True).clamp(min=1e-10)
    one = torch.eye(len(edges), dtype=edges.dtype)
    return weights @ (torch.linalg.inv(one - shares) - one)


def test_influence_counts_all_paths():
    edges, weights = random_graph()
    torch.testing.assert_close(influence.influence(edges, weights), by_inverse(edges, weights))
    with pytest.raises(ValueError, match="circle"):
        influence.influence(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1.0, 0.0]))


def test_influence_of_what_is_traced_so_far_leaves_the_other_nodes_without_inputs():
    edges, weights = random_graph()
    known = torch.tensor([8, 5])
    partial = torch.zeros_like(edges)
    partial[known], partial[-2:] = edges[known], edges[-2:]
    partial[:, -2:] = 0
    found = influence.influence_on_logits(partial[-2:], partial[known], known, known, weights[-2:])
    torch.testing.assert_close(found, by_inverse(partial, weights))


def test_the_whole_takes_all_that_is_not_0_however_small():
    """1 + 1e-9 is 1 in float32, so that a sum says nothing of the small ones."""
    scores = torch.cat([torch.ones(1), torch.full((100,), 1e-9), torch.zeros(5)])
    assert int((scores >= influence.threshold_of(scores, 1.0)).sum()) == 101
    assert int((scores >= influence.threshold_of(scores, 0.98)).sum()) == 1


def test_scores_of_a_graph_that_is_worked_out_by_hand():
    """Nodes: feature, error, embedding, logit. Half of the logit is error, half the feature, all of it embedding."""
    edges = torch.zeros(4, 4)
    edges[3, 0], edges[3, 1], edges[0, 2] = -3.0, 3.0, 2.0
    weights = torch.tensor([0.0, 0.0, 0.0, 1.0])
    influences = influence.influence(edges, weights)
    assert influences.tolist() == [0.5, 0.5, 0.5, 0.0]
    error, embedding = torch.tensor([False, True, False, False]), torch.tensor([False, False, True, False])
    assert influence.replacement_score(influences, embedding, error) == pytest.approx(0.5)
    # Explained: feature 1, error and embedding 1 (no inputs), logit 0.5, weighted 0.5, 0.5, 0.5 and 1.
    score = influence.completeness_score(edges, influences, weights, error)
    assert score == pytest.approx((1.5 + 0.5) / 2.5)


def test_pruning_keeps_what_carries_the_share_and_leaves_no_loose_ends():
    graph = trace(model_of("llama"), transcoders("llama"), IDS, disable_tqdm=True)
    pruned = graph.prune(0.6, 0.9)
    kinds = {kind: int(pruned.is_kind(kind).sum()) for kind in ("feature", "embedding", "logit")}
    assert 0 < kinds["feature"] < int(graph.is_kind("feature").sum())
    assert kinds["embedding"] == len(IDS) and kinds["logit"] == int(graph.is_kind("logit").sum())
    kept = {node.name for node in pruned.nodes}
    weakest = min(float(graph.influence[graph.index(name)]) for name in kept if "/" in name or "error" in name)
    ordered = graph.influence.sort(descending=True).values
    needed = int((ordered.cumsum(0) < 0.6 * ordered.sum()).sum())
    assert weakest >= ordered[needed]
    features = pruned.is_kind("feature")
    assert bool((pruned.edges[features] != 0).any(1).all()) and bool((pruned.edges[:, features] != 0).any(0).all())
    sums = pruned.edges.sum(1) + pruned.left_out + pruned.constants
    values = torch.tensor([node.value for node in pruned.nodes], dtype=torch.float64)
    rows = pruned.is_kind("feature", "logit")
    torch.testing.assert_close(sums[rows], values[rows])
    reach = graph.is_kind("feature") & (graph.influence > 0)
    whole = [node for node in graph.prune(1.0, 1.0).nodes if node.kind == "feature"]
    assert whole == [graph.nodes[row] for row in reach.nonzero()[:, 0].tolist()] and len(whole) > 10
    with pytest.raises(ValueError, match="between 0 and 1"):
        graph.prune(1.2)
