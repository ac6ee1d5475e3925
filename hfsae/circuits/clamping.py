"""Interventions: what a graph predicts of a change, beside what the model does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hfsae.circuits.nodes import Node
from hfsae.circuits.replacement import LocalReplacement
from hfsae.circuits.targets import Targets, target_vectors
from hfsae.hooks import HookPoint

if TYPE_CHECKING:
    from hfsae.circuits.graph import Graph

FEWEST = 3
"""Features without which a correlation says nothing."""

# How far, as a share, values of another machine may be from those of a graph. A rule that takes the largest may choose
# another feature there, so a few may be missing.
_MAY_DIFFER = 0.02


@dataclass(frozen=True)
class Effect:
    """What a change does to one logit node, in its units.

    Attributes:
        label: The logit's.
        before: Its value.
        direct: What the edges from the changed features into it predict.
        constrained: The same, measured: the model with attention, norms and all other features held. It differs where
            edges were pruned.
        total: What all paths of the graph predict; a feature on the way falls to 0 and no further, unless its values
            may be negative.
        open: What the model itself does, nothing held but the changed features.
    """

    label: str
    before: float
    direct: float
    constrained: float
    total: float
    open: float


@dataclass(frozen=True)
class Intervention:
    """Features that were multiplied, and what that does to each logit node.

    Attributes:
        factors: Factor by the name of the node.
        effects: An effect for each logit node.
    """

    factors: dict[str, float]
    effects: list[Effect]

    def __str__(self) -> str:
        rows = [f"{'logit':>16} {'before':>9} {'direct':>9} {'constrained':>12} {'total':>9} {'open':>9}"]
        for effect in self.effects:
            rows.append(
                f"{effect.label!r:>16} {effect.before:9.3f} {effect.direct:+9.3f} {effect.constrained:+12.3f} "
                f"{effect.total:+9.3f} {effect.open:+9.3f}"
            )
        return "\n".join(rows)


@dataclass(frozen=True)
class Ablations:
    """Features that were taken away one by one.

    Attributes:
        nodes: Their names.
        predicted: For each the changes of all logit nodes that all paths of the graph predict.
        measured: The same in the model itself.
        correlation: Of predicted with measured changes (Pearson), over features and logits.
        direct_correlation: The same of what the edges into the logits alone predict.
        mean_change: Mean size of a measured change.
    """

    nodes: list[str]
    predicted: list[list[float]]
    measured: list[list[float]]
    correlation: float
    direct_correlation: float
    mean_change: float


@dataclass(frozen=True)
class Validation:
    """Whether a graph says what the model does.

    Attributes:
        strongest: The features with most influence.
        others: Other features of the graph, for each of these that whose activation is nearest in size.
    """

    strongest: Ablations
    others: Ablations

    def __str__(self) -> str:
        return "\n".join(
            f"{name}: predicted and measured changes correlate by {found.correlation:.3f} (direct edges alone by "
            f"{found.direct_correlation:.3f}), mean change {found.mean_change:.3f} ({len(found.nodes)} features)"
            for name, found in (("strongest", self.strongest), ("others of like activation", self.others))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def intervene(graph: "Graph", by_node: Mapping[Node | str | int, float]) -> Intervention:
    """What `Graph.intervene` does.

    Raises:
        ValueError: If a node is no feature or is named twice, if there are none, or the graph has no model. Likewise
            if a factor is not finite.
    """
    circuit = _circuit(graph)
    factors = {graph.index(node): factor for node, factor in by_node.items()}
    if len(factors) < len(by_node):
        raise ValueError("a node has two factors, by its name and by its row: give each node one.")
    for row in factors:
        if graph.nodes[row].kind != "feature":
            raise ValueError(f"{graph.nodes[row].name!r} is no feature: only features can be multiplied.")
        if not math.isfinite(factors[row]):
            raise ValueError(f"the factor of {graph.nodes[row].name!r} is {factors[row]}: expected a finite number.")
    if not factors:
        raise ValueError("there is no factor: name a feature node and what it is multiplied by.")
    changes = _changes(graph, [factors])
    logits = graph.is_kind("logit")
    direct = (graph.edges[logits] @ changes.nan_to_num(nan=0.0).T)[:, 0]
    total = predicted(graph, changes)[0]
    readers = _readers(graph, circuit)
    constrained = _constrained(graph, circuit, factors, readers)
    opened = measured_changes(graph, circuit, [factors], readers)[0]
    effects = [
        Effect(node.label, node.value, *(float(values[number]) for values in (direct, constrained, total, opened)))
        for number, node in enumerate(node for node in graph.nodes if node.kind == "logit")
    ]
    return Intervention({graph.nodes[row].name: factor for row, factor in factors.items()}, effects)


def validate(graph: "Graph", n: int, *, batch_size: int) -> Validation:
    """What `Graph.validate` does."""
    circuit = _circuit(graph)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected 1 or more.")
    features = graph.is_kind("feature").nonzero()[:, 0]
    if len(features) < 2 * FEWEST or n < FEWEST:
        raise ValueError(
            f"a correlation needs {FEWEST} features and as many others; the graph has {len(features)}, n is {n}."
        )
    order = features[graph.influence[features].argsort(descending=True, stable=True)].tolist()
    n = min(n, len(order) // 2)
    strongest, rest = order[:n], order[n:]
    others = []
    for row in strongest:
        nearest = min(rest, key=lambda other: abs(abs(graph.nodes[other].value) - abs(graph.nodes[row].value)))
        rest.remove(nearest)
        others.append(nearest)
    return Validation(*(_ablations(graph, circuit, rows, batch_size) for rows in (strongest, others)))


def _ablations(graph: "Graph", circuit: LocalReplacement, rows: list[int], batch_size: int) -> Ablations:
    clamps = [{row: 0.0} for row in rows]
    changes = _changes(graph, clamps)
    expected = predicted(graph, changes)
    direct = changes.nan_to_num(nan=0.0) @ graph.edges[graph.is_kind("logit")].T
    readers = _readers(graph, circuit)
    parts = [clamps[start : start + batch_size] for start in range(0, len(clamps), batch_size)]
    found = torch.cat([measured_changes(graph, circuit, part, readers) for part in parts])
    return Ablations(
        [graph.nodes[row].name for row in rows],
        expected.tolist(),
        found.tolist(),
        correlation=_correlation(expected.flatten(), found.flatten()),
        direct_correlation=_correlation(direct.flatten(), found.flatten()),
        mean_change=float(found.abs().mean()),
    )


def _correlation(one: Tensor, other: Tensor) -> float:
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1])


# -- what the graph predicts ------------------------------------------------------------------------------------------
def _changes(graph: "Graph", clamps: Sequence[Mapping[int, float]]) -> Tensor:
    """(batch, n): by what share of its value each clamped node changes; NaN where nothing is clamped."""
    changes = graph.edges.new_full((len(clamps), len(graph.nodes)), torch.nan)
    for number, factors in enumerate(clamps):
        for row, factor in factors.items():
            changes[number, row] = factor - 1
    return changes


def predicted(graph: "Graph", changes: Tensor) -> Tensor:
    """What all paths of a graph make of changes of its nodes.

    A feature changes by Σ edge × share over its sources; as a share of its own value it is passed on. It stays where
    it is clamped. It falls no further than to 0, unless its values may be negative.

    Args:
        graph: The graph with its model, whose features stand in the order of a forward pass.
        changes: (batch, n), shares by which clamped nodes change, 0 where they are to stay; NaN where nothing is
            clamped.

    Returns:
        (batch, logit nodes).
    """
    circuit = _circuit(graph)
    signed = {source.owner for source in circuit.sources.values() if source.sae.signed}
    clamped = ~changes.isnan()
    shares = changes.nan_to_num(nan=0.0)
    for row in graph.is_kind("feature").nonzero()[:, 0].tolist():
        node = graph.nodes[row]
        moved = (shares @ graph.edges[row]) / node.value
        moved = moved if node.source in signed else moved.clamp(min=-1.0)
        shares[:, row] = torch.where(clamped[:, row], shares[:, row], moved)
    return shares @ graph.edges[graph.is_kind("logit")].T


# -- what the model does ----------------------------------------------------------------------------------------------
def _circuit(graph: "Graph") -> LocalReplacement:
    return graph._with_model()


def _readers(graph: "Graph", circuit: LocalReplacement) -> Targets:
    logits = [node for node in graph.nodes if node.kind == "logit"]
    tokens = [node.token for node in logits if node.token is not None]
    return target_vectors(circuit, tokens, [node.against for node in logits])


def _row_in_source(circuit: LocalReplacement, node: Node) -> int:
    found = _rows_in_source(circuit, node)
    if not len(found):
        raise ValueError(f"{node.name!r} does not fire in this model on this machine: trace the prompt here again.")
    return int(found[0])


def _rows_in_source(circuit: LocalReplacement, node: Node) -> Tensor:
    """The row of a feature node in its source: one, or none where it does not fire."""
    active = circuit.active[circuit.source_of(node)]
    return ((active.positions == node.position) & (active.features == node.feature)).nonzero()[:, 0]


def circuit_of(graph: "Graph", circuit: LocalReplacement) -> LocalReplacement:
    """The model of a graph that was traced before; one in which the graph's nodes have other values is refused.

    Args:
        graph: The graph.
        circuit: A model with SAEs at its prompt.

    Raises:
        ValueError: If these are not what the graph was traced with.
    """
    there = {(source.owner, circuit.layers[source.reads]) for source in circuit.sources.values()}
    features = [node for node in graph.nodes if node.kind == "feature"]
    if missing := {(node.source, node.layer) for node in features} - there:
        name, layer = sorted(missing, key=str)[0]
        raise ValueError(f"the graph has features of the SAE {name!r} at layer {layer}, which is not among these.")
    now = []
    for node in features:
        rows = _rows_in_source(circuit, node)
        now.append(float(circuit.active[circuit.source_of(node)].values[rows[0]]) if len(rows) else 0.0)
    readers = _readers(graph, circuit)
    logits = (readers.vectors @ circuit.hidden + readers.constants).tolist()
    for nodes, values in ((features, now), ([node for node in graph.nodes if node.kind == "logit"], logits)):
        apart = sum(abs(node.value - value) for node, value in zip(nodes, values, strict=True))
        if not apart <= _MAY_DIFFER * sum(abs(node.value) for node in nodes):
            raise ValueError(
                f"this model with these SAEs gives the graph's {nodes[0].kind}s other values: pass what it was "
                "traced with, or trace the prompt again."
            )
    return circuit


@torch.no_grad()
def _constrained(graph: "Graph", circuit: LocalReplacement, factors: Mapping[int, float], readers: Targets) -> Tensor:
    """(logit nodes,): the change in the linear model, where all but the clamped features is held."""
    written = circuit.written()
    for row, factor in factors.items():
        node = graph.nodes[row]
        here = _row_in_source(circuit, node)
        for place, made in circuit.active[circuit.source_of(node)].written.items():
            written[place][node.position] += (factor - 1) * made[here]
    _, hidden = circuit.run({place: value[None] for place, value in written.items()}, circuit.embeddings[None])
    return (readers.vectors @ (hidden[0] - circuit.hidden)).cpu()


@torch.no_grad()
def measured_changes(
    graph: "Graph", circuit: LocalReplacement, clamps: Sequence[Mapping[int, float]], readers: Targets
) -> Tensor:
    """What the model itself does when features are clamped to a multiple of their value in the prompt.

    Args:
        graph: The graph.
        circuit: Its model.
        clamps: Factors by row of the graph, for each run of the batch.
        readers: The logit nodes.

    Returns:
        (batch, logit nodes), changes.
    """
    nodes = [
        (number, graph.nodes[row], factor) for number, factors in enumerate(clamps) for row, factor in factors.items()
    ]

    def clamp(name: str, x: Tensor) -> dict[HookPoint, Tensor]:
        source, active = circuit.sources[name], circuit.active[name]
        added = {place: x.new_zeros(*x.shape[:2], made.shape[-1]) for place, made in active.written.items()}
        for number, node, factor in nodes:
            if circuit.source_of(node) == name and node.feature is not None:
                here = _row_in_source(circuit, node)
                now = source.values_of(x[number, node.position][None], node.feature)[0]
                for place, made in active.written.items():
                    added[place][number, node.position] += (factor - now / active.values[here]) * made[here]
        return added

    names = dict.fromkeys(circuit.source_of(node) for _, node, _ in nodes)
    with circuit.really({name: lambda x, name=name: clamp(name, x) for name in names}):
        hidden = circuit.read_by_head(len(clamps))
    return ((hidden - circuit.own_hidden) @ readers.vectors.T).cpu()
