"""Graphs for other projects: the JSON of circuit-tracer and Neuronpedia, and networkx."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hfsae.circuits.influence import cumulative_influence
from hfsae.circuits.nodes import Node

if TYPE_CHECKING:
    import networkx

    from hfsae.circuits.graph import Graph

_SCHEMA = 1
_TYPES = {
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "embedding": "embedding",
    "logit": "logit",
}


def to_json(graph: "Graph", *, slug: str, scan: str | None) -> dict[str, Any]:
    """A graph in the schema that circuit-tracer's pages and Neuronpedia read (schema version 1).

    It is circuit-tracer's own `frontend/graph_models.py`, with one difference. There the id of an error of layer l is
    that of feature l of layer 0 at the same position. Errors here are called `error_l_position`, so that no two nodes
    have one id. An error of a second place in a layer has the place in its id.

    Args:
        graph: The graph. `graph.prune()` first keeps the file small.
        slug: What it is called.
        scan: What the set of its features is called; None takes the base model's name.
    """
    scan = scan or graph.about["base_model"] or "unnamed"
    layers = 1 + max((node.layer for node in graph.nodes if node.layer is not None), default=0)
    first = {kind: _first_of_layers(graph, kind) for kind in ("feature", "error")}
    ids = [_id(node, layers, first, _in_layer(graph, node)) for node in graph.nodes]
    influences = cumulative_influence(graph.influence)
    strongest = max(graph.nodes, key=lambda node: node.probability)
    nodes = [
        {
            "node_id": node_id,
            "feature": _feature_number(node, _in_layer(graph, node)),
            "layer": _layer(node, layers),
            "ctx_idx": node.position,
            "feature_type": _TYPES[node.kind],
            "token_prob": node.probability,
            "is_target_logit": node is strongest,
            "run_idx": 0,
            "reverse_ctx_idx": 0,
            "jsNodeId": f"{node_id.rpartition('_')[0]}-0" if node.kind == "feature" else node_id,
            "clerp": _clerp(node),
            "influence": None if node.kind == "logit" else float(influence),
            "activation": node.value if node.kind == "feature" else None,
        }
        for node, node_id, influence in zip(graph.nodes, ids, influences, strict=True)
    ]
    by_name = {node.name: node_id for node, node_id in zip(graph.nodes, ids, strict=True)}
    grouped = [name for members in graph.supernodes.values() for name in members]
    targets, starts = graph.edges.nonzero(as_tuple=True)
    weights = graph.edges[targets, starts].tolist()
    return {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "transcoder_list": list(graph.about["saes"]),
            "prompt_tokens": graph.tokens,
            "prompt": graph.prompt,
            "node_threshold": None,
            "schema_version": _SCHEMA,
        },
        "qParams": {
            "pinnedIds": [by_name[name] for name in dict.fromkeys([*graph.pinned, *grouped])],
            "supernodes": [[name, *(by_name[one] for one in members)] for name, members in graph.supernodes.items()],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "attention": [asdict(found) for found in graph.attention],
        "nodes": nodes,
        "links": [
            {"source": ids[source], "target": ids[target], "weight": weight}
            for source, target, weight in zip(starts.tolist(), targets.tolist(), weights, strict=True)
        ],
    }


def _clerp(node: Node) -> str:
    """What a node is called there; a difference of two logits has no probability."""
    if node.kind != "logit":
        return node.label
    if node.against is not None:
        return f'Difference of logits "{node.label}" ({node.value:.3f})'
    return f'Output "{node.label}" (p={node.probability:.3f})'


def _first_of_layers(graph: "Graph", kind: str) -> dict[int | None, str | None]:
    """The first SAE, or the first place, of every layer: its nodes have ids without its name."""
    found: dict[int | None, str | None] = {}
    for node in graph.nodes:
        if node.kind == kind:
            found.setdefault(node.layer, node.source)
    return found


def _id(node: Node, layers: int, first: dict[str, dict[int | None, str | None]], in_layer: int) -> str:
    if node.kind == "embedding":
        return f"E_{node.token}_{node.position}"
    if node.kind == "logit":
        return f"{layers + 1}_{node.token}_{node.position}"
    layer = str(node.layer) if first[node.kind][node.layer] == node.source else f"{node.layer}:{node.source}"
    return f"{layer}_{in_layer}_{node.position}" if node.kind == "feature" else f"error_{layer}_{node.position}"


def _in_layer(graph: "Graph", node: Node) -> int:
    """The number of a feature among those of its layer, which is its own but of a cross-layer transcoder."""
    per_layer = graph.about.get("features_per_layer", {}).get(node.source)
    return (node.feature or 0) % per_layer if per_layer else node.feature or 0


def _feature_number(node: Node, in_layer: int) -> int:
    """Feature and layer in one number (Cantor's pairing), a token's position, a logit's token, -1 of an error."""
    if node.kind == "feature":
        assert node.layer is not None
        together = node.layer + in_layer
        return together * (together + 1) // 2 + in_layer
    return {"error": -1, "embedding": node.position, "logit": node.token or 0}[node.kind]


def _layer(node: Node, layers: int) -> str:
    return {"embedding": "E", "logit": str(layers + 1)}.get(node.kind, str(node.layer))


def to_networkx(graph: "Graph") -> "networkx.DiGraph":
    """A graph as `networkx.DiGraph`: nodes by name with the fields of `Node` and `influence`, edges with `weight`."""
    try:
        import networkx
    except ImportError as error:
        raise ImportError("to_networkx needs networkx: pip install networkx.") from error
    made = networkx.DiGraph(prompt=graph.prompt)
    for node, influence in zip(graph.nodes, graph.influence.tolist(), strict=True):
        made.add_node(node.name, **asdict(node), influence=influence)
    for target, source in graph.edges.nonzero().tolist():
        weight = float(graph.edges[target, source])
        made.add_edge(graph.nodes[source].name, graph.nodes[target].name, weight=weight)
    return made
