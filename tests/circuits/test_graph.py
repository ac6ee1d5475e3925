"""Graphs in use: nodes by name, on a disk, and in the formats of others."""

import json
from pathlib import Path

import networkx
import pytest
import torch

from hfsae import Graph, trace
from tests.circuits.tiny import IDS, cross_layer, model_of, sae_at, transcoders


@pytest.fixture(scope="module")
def graph() -> Graph:
    saes = transcoders("llama") | {"stream.1": sae_at("llama", "resid_post.1", seed=3)}
    return trace(model_of("llama"), saes, IDS, disable_tqdm=True)


def test_nodes_are_found_by_name_and_by_influence(graph: Graph):
    node = graph.strongest(1)[0]
    assert graph.index(node) == graph.index(node.name) == graph.index(graph.index(node))
    assert node.name == f"{node.source}/{node.feature}@{node.position}"
    assert graph.influence[graph.index(node)] == graph.influence[graph.is_kind("feature")].max()
    (source, weight), *rest = graph.inputs(node)
    assert graph.edges[graph.index(node), graph.index(source)] == weight
    assert all(abs(other) <= abs(weight) for _, other in rest)
    assert all(graph.edges[graph.index(target), graph.index(node)] == weight for target, weight in graph.outputs(node))
    assert len({other.name for other in graph.nodes}) == len(graph.nodes)
    with pytest.raises(ValueError, match="no node 'mlp.0/99@1'"):
        graph.index("mlp.0/99@1")
    with pytest.raises(ValueError, match="no node 1000"):
        graph.index(1000)


def test_numbers_of_things_to_list_are_counts(graph: Graph):
    """A negative one gave all but the weakest."""
    node = graph.strongest(1)[0]
    for listed in (
        lambda n: graph.strongest(n),
        lambda n: graph.inputs(node, n),
        lambda n: graph.outputs(node, n),
        lambda n: graph.looks(n=n),
        lambda n: graph.explain_attention(0, 0, n=n).terms,
    ):
        with pytest.raises(ValueError, match="n is -1: expected 0 or more"):
            listed(-1)
        assert not listed(0)


def test_scores_and_sizes_are_said(graph: Graph):
    assert 0 < graph.replacement_score < 1 and 0 < graph.completeness_score < 1
    assert f"{graph.n_active} features" in repr(graph) and "replacement" in repr(graph)


def test_what_is_saved_is_loaded(graph: Graph, tmp_path: Path):
    loaded = Graph.load(graph.save(tmp_path / "deep" / "graph.safetensors"))
    assert loaded.nodes == graph.nodes and loaded.prompt == graph.prompt and loaded.exactness == graph.exactness
    assert torch.equal(loaded.edges, graph.edges) and torch.equal(loaded.constants, graph.constants)
    assert loaded.about == graph.about and loaded.notes == graph.notes and loaded.circuit is None
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    with pytest.raises(OSError, match="other.safetensors"):
        Graph.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="graph.use"):
        loaded.intervene({loaded.strongest(1)[0]: 0.0})


def test_networkx_has_every_node_and_edge(graph: Graph):
    made = graph.to_networkx()
    assert networkx.is_directed_acyclic_graph(made) and made.number_of_nodes() == len(graph.nodes)
    assert made.number_of_edges() == int((graph.edges != 0).sum())
    node = graph.strongest(1)[0]
    (source, weight), *_ = graph.inputs(node)
    assert made.edges[source.name, node.name]["weight"] == weight and made.nodes[node.name]["kind"] == "feature"


def test_json_is_of_the_schema_of_circuit_tracer(graph: Graph):
    content = json.loads(json.dumps(graph.to_json(slug="test", scan="org/set")))
    assert content["metadata"]["slug"] == "test" and content["metadata"]["scan"] == "org/set"
    assert content["metadata"]["prompt_tokens"] == graph.tokens and content["metadata"]["schema_version"] == 1
    ids = [node["node_id"] for node in content["nodes"]]
    assert len(set(ids)) == len(ids) == len(graph.nodes)
    by_id = dict(zip(ids, graph.nodes, strict=True))
    assert len(content["links"]) == int((graph.edges != 0).sum())
    for link in content["links"][::50]:
        target, source = by_id[link["target"]], by_id[link["source"]]
        assert link["weight"] == float(graph.edges[graph.index(target), graph.index(source)])
    feature = next(node for node in content["nodes"] if node["feature_type"] == "cross layer transcoder")
    own = by_id[feature["node_id"]]
    assert feature["node_id"] == f"{own.layer}_{own.feature}_{own.position}" and feature["activation"] == own.value
    together = own.layer + own.feature
    assert feature["feature"] == together * (together + 1) // 2 + own.feature
    assert sum(node["is_target_logit"] for node in content["nodes"]) == 1


def test_a_difference_of_two_logits_has_no_probability_for_others():
    made = trace(model_of("llama"), transcoders("llama"), IDS, contrast=(5, 9), disable_tqdm=True)
    logits = model_of("llama")(IDS[None]).logits[0, -1]
    shown = made.to_json()["nodes"][-1]
    assert shown["clerp"] == f'Difference of logits "5 − 9" ({(logits[5] - logits[9]).item():.3f})'


def test_others_count_the_features_of_a_cross_layer_transcoder_layer_by_layer(tmp_path: Path):
    made = trace(model_of("llama"), {"clt": cross_layer("llama")}, IDS, disable_tqdm=True)
    content = Graph.load(made.save(tmp_path / "graph.safetensors")).to_json()
    by_row = list(zip(content["nodes"], made.nodes, strict=True))
    shown = next(shown for shown, node in by_row if node.kind == "feature" and node.layer == 1)
    own = next(node for node in made.nodes if node.kind == "feature" and node.layer == 1)
    assert own.feature >= 24 and own.name == f"clt/{own.feature}@{own.position}"
    assert shown["node_id"] == f"1_{own.feature - 24}_{own.position}"
    together = 1 + own.feature - 24
    assert shown["feature"] == together * (together + 1) // 2 + own.feature - 24


def test_pins_and_groups_stay_when_a_graph_is_pruned_saved_and_written_for_others(tmp_path: Path):
    made = trace(model_of("llama"), transcoders("llama"), IDS, disable_tqdm=True)
    weak = made.strongest(30)[-3:]
    assert not {node.name for node in weak} & {node.name for node in made.prune(0.5).nodes}
    made.pin(weak[0]).group("both", weak[1], weak[2]).group("other", weak[2].name)
    assert made.supernodes == {"both": [weak[1].name], "other": [weak[2].name]}
    made.group("both", weak[2])
    assert made.supernodes == {"both": [weak[1].name, weak[2].name]}
    small = Graph.load(made.save(tmp_path / "graph.safetensors")).prune(0.5)
    assert {node.name for node in weak} <= {node.name for node in small.nodes}
    content = small.to_json()
    ids = {node.name: shown["node_id"] for node, shown in zip(small.nodes, content["nodes"], strict=True)}
    assert content["qParams"]["supernodes"] == [["both", ids[weak[1].name], ids[weak[2].name]]]
    assert content["qParams"]["pinnedIds"] == [ids[node.name] for node in weak]
    with pytest.raises(ValueError, match="no node 'mlp.9/1@1'"):
        made.group("both", "mlp.9/1@1")
    with pytest.raises(ValueError, match="needs a name"):
        made.group(" ", weak[0])
