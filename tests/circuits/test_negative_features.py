"""Graphs of SAEs whose features may be negative: against derivatives by hand, and against the same SAEs by sign."""

import json
from functools import cache

import pytest
import torch
from torch import Tensor

from hfsae import SAE, AbsTopKSAEConfig, Graph, MatchingPursuitSAEConfig, trace
from hfsae.circuits.clamping import predicted
from hfsae.interop.circuit_tracer_writer import write_transcoder_set
from tests.circuits.by_hand import ByHand, StreamByHand
from tests.circuits.test_graph_page import content_of
from tests.circuits.test_tracing import compare_with_jacobian
from tests.circuits.tiny import IDS, model_of, sae_at, stream_saes, transcoders
from tests.hooks.witness import replaced


def signed(family: str, **fields) -> dict[str, SAE]:
    return transcoders(family, config_class=AbsTopKSAEConfig, skip=True, **fields)


def by_sign(family: str) -> dict[str, SAE]:
    return {name: sae.by_sign() for name, sae in signed(family).items()}


def graph_of(family: str, saes: dict[str, SAE], **options) -> Graph:
    return trace(model_of(family), saes, IDS, disable_tqdm=True, **options)


@cache
def both(family: str = "llama") -> tuple[Graph, Graph]:
    """A graph with negative features, and that of the same SAEs with a feature for each sign."""
    return graph_of(family, signed(family)), graph_of(family, by_sign(family))


def twin(name: str, graph: Graph) -> str:
    """What a node of a signed graph is called in the other one."""
    node = graph.nodes[graph.index(name)]
    if node.kind != "feature" or node.value > 0:
        return name
    return f"{node.source}/{node.feature + 24}@{node.position}"


def signs_of(graph: Graph) -> Tensor:
    return torch.tensor([-1.0 if node.value < 0 and node.kind == "feature" else 1.0 for node in graph.nodes]).double()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_edge_is_the_derivative_of_a_model_that_is_written_out_by_hand(family: str):
    saes = signed(family)
    graph = graph_of(family, saes, max_logits=4, min_probability=1.0)
    assert 0.2 < sum(node.value < 0 for node in graph.nodes if node.kind == "feature") / 30 < 0.8
    compare_with_jacobian(graph, ByHand(family, model_of(family), list(saes.values()), IDS))


def test_so_is_every_edge_of_saes_of_the_stream():
    saes = stream_saes("llama", config_class=AbsTopKSAEConfig)
    graph = graph_of("llama", saes, max_logits=4, min_probability=1.0)
    compare_with_jacobian(graph, StreamByHand("llama", model_of("llama"), list(saes.values()), IDS))


def test_what_goes_into_a_negative_feature_and_what_biases_add_are_its_value():
    graph, _ = both("gpt2")
    rows = [row for row, node in enumerate(graph.nodes) if node.kind == "feature" and node.value < 0]
    sums = graph.edges.sum(1) + graph.constants + graph.left_out
    values = torch.tensor([graph.nodes[row].value for row in rows], dtype=torch.float64)
    torch.testing.assert_close(sums[rows], values, rtol=1e-8, atol=1e-8)
    assert len(rows) > 5 and graph.exactness.features < 1e-8 and graph.exactness.targets < 1e-8


def test_a_graph_is_that_of_the_same_saes_with_a_feature_for_each_sign():
    graph, other = both()
    rows = [other.index(twin(node.name, graph)) for node in graph.nodes]
    assert sorted(rows) == list(range(len(other.nodes)))
    signs = signs_of(graph)
    # A twin's value has the other sign, so what makes it has; what it makes of others is the same.
    torch.testing.assert_close(other.edges[rows][:, rows], signs[:, None] * graph.edges, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(other.constants[rows], signs * graph.constants, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(other.influence[rows], graph.influence, rtol=1e-8, atol=1e-12)
    assert graph.replacement_score == pytest.approx(other.replacement_score, rel=1e-9)
    assert graph.completeness_score == pytest.approx(other.completeness_score, rel=1e-9)
    pruned, expected = graph.prune(0.9, 0.95), other.prune(0.9, 0.95)
    assert {twin(node.name, graph) for node in pruned.nodes} == {node.name for node in expected.nodes}
    assert any(node.value < 0 for node in pruned.nodes if node.kind == "feature")
    few, fewer = (graph_of("llama", saes("llama"), max_features=8) for saes in (signed, by_sign))
    assert {twin(node.name, few) for node in few.nodes} == {node.name for node in fewer.nodes}


def test_a_negative_feature_is_taken_away_and_doubled():
    graph, other = both()
    node = next(node for node in graph.strongest(30) if node.value < 0)
    for factor in (0.0, 2.0):
        found = graph.intervene({node: factor}).effects
        expected = other.intervene({twin(node.name, graph): factor}).effects
        for one, its in zip(found, expected, strict=True):
            assert one.constrained == pytest.approx(one.direct, rel=1e-6, abs=1e-9)
            assert (one.direct, one.open) == pytest.approx((its.direct, its.open), rel=1e-6, abs=1e-9)
    saes = signed("llama")
    direction = saes[node.source].feature_directions[node.feature].detach()
    place = graph.circuit.sources[node.source].writes[0]

    def without(y: Tensor) -> Tensor:
        changed = y.clone()
        changed[0, node.position] -= node.value * direction
        return changed

    model = model_of("llama")
    with torch.no_grad():
        clean = model(IDS[None]).logits[0, -1]
        with replaced(model, str(place), without):
            changed = model(IDS[None]).logits[0, -1] - clean
    logits = [one.token for one in graph.nodes if one.kind == "logit"]
    measured = torch.tensor([effect.open for effect in graph.intervene({node: 0.0}).effects], dtype=torch.float64)
    torch.testing.assert_close(measured, (changed - changed.mean())[logits], rtol=1e-4, atol=1e-5)
    assert measured.abs().max() > 1e-3


def test_features_of_like_activation_are_alike_in_size():
    graph, other = both()
    found, expected = graph.validate(5), other.validate(5)
    for mine, its in ((found.strongest, expected.strongest), (found.others, expected.others)):
        assert [twin(name, graph) for name in mine.nodes] == its.nodes
        assert mine.measured == [pytest.approx(row, rel=1e-5, abs=1e-8) for row in its.measured]


@pytest.mark.parametrize("saes", [signed, by_sign])
def test_only_a_feature_that_may_be_negative_goes_beyond_0(saes):
    """0 -> 1 -> logit: 1 has the value −1, or 1, and would change its sign."""
    graph = graph_of("llama", saes("llama"), max_features=2, max_logits=1)
    edges = torch.zeros_like(graph.edges)
    value = -1.0 if saes is signed else 1.0
    edges[1, 0], edges[-1, 1] = 2 * value, 3.0
    graph.edges = edges
    graph.nodes[1] = type(graph.nodes[1])(**{**vars(graph.nodes[1]), "value": value})
    changes = torch.full((1, len(graph.nodes)), torch.nan, dtype=edges.dtype)
    changes[0, 0] = -1.0
    assert float(predicted(graph, changes)) == (-6.0 if saes is signed else -3.0)


def test_a_negative_activation_has_its_sign_on_the_page_on_the_disk_and_in_the_json(tmp_path):
    graph, _ = both()
    node = next(node for node in graph.strongest(30) if node.value < 0)
    (shown,) = (one for one in content_of(graph.write_page(tmp_path / "a.html"))["nodes"] if one["name"] == node.name)
    assert shown["value"] == pytest.approx(node.value, rel=1e-3)
    content = json.loads(json.dumps(graph.to_json()))
    assert content["nodes"][graph.index(node)]["activation"] == node.value
    assert Graph.load(graph.save(tmp_path / "graph.safetensors")).nodes == graph.nodes


def test_a_set_for_circuit_tracer_cannot_have_negative_features(tmp_path):
    with pytest.raises(ValueError, match="transcoders of ReLU or thresholds and equal widths; this is a AbsTopKSAE"):
        write_transcoder_set(list(signed("llama").values()), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_features_of_matching_pursuit_are_refused():
    sae = sae_at("llama", "resid_post.0", config_class=MatchingPursuitSAEConfig)
    with pytest.raises(ValueError, match="finds features one after the other, so each depends on those before it"):
        graph_of("llama", {"stream.0": sae})


def test_an_sae_with_another_k_has_the_edges_of_that_k():
    saes = {name: sae.with_k(2) for name, sae in transcoders("llama", hierarchical=True).items()}
    graph = graph_of("llama", saes, max_logits=4, min_probability=1.0)
    compare_with_jacobian(graph, ByHand("llama", model_of("llama"), list(saes.values()), IDS), k=2)
