"""`Graph`: which features of a prompt make which others, and what the model says."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from hfsae.circuits import influence
from hfsae.circuits.nodes import Kind, Node, how_many
from hfsae.circuits.replacement import LocalReplacement
from hfsae.storage import open_tensors, write_tensors

if TYPE_CHECKING:
    import networkx
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from hfsae.autoencoder.model import SparseAutoencoder
    from hfsae.circuits.attention_terms import AttentionTerms, Look
    from hfsae.circuits.clamping import Intervention, Validation

_FORMAT = 1
_TENSORS = ("edges", "constants", "left_out")


@dataclass(frozen=True)
class Exactness:
    """How exact the linear model behind a graph is.

    Attributes:
        logits: The largest difference of a logit, rebuilt from the linear model, from the model's own.
        features: The largest relative error of a feature: its value less the sum of all that makes it, divided by the
            value. Where the mean of all values is larger, that divides.
        targets: The same of logit nodes.
    """

    logits: float
    features: float
    targets: float


@dataclass(eq=False)
class Graph:
    """An attribution graph. n nodes: features, then errors, embeddings and logits.

    `edges[t].sum() + constants[t] + left_out[t]` is the value of node t, to the `exactness` that is stated.

    Attributes:
        prompt: The text.
        token_ids: Its tokens.
        tokens: Their texts.
        nodes: The nodes.
        edges: (n, n), rows targets and columns sources: how much of the target's value the source makes. Rows of
            errors and embeddings are 0.
        constants: (n,), what biases make of it.
        left_out: (n,), what features make of it that are no nodes.
        exactness: How exact it is.
        n_active: How many features fire in the prompt; `max_features` of them are nodes.
        about: What the graph was made of: `base_model`, `saes` (with the digest of their weights), `values`.
        notes: What a reader has to know, in sentences.
        validation: What `validate` measured, as plain values; None before.
        pinned: Names of nodes that stay on the page whatever else is hidden (`pin`).
        supernodes: Names of nodes that are taken for one, by the name of their group (`group`).
        attention: What `explain_attention` found.
        circuit: The model at the prompt; None of a graph from a disk (`use`).

    Example:
        >>> graph = hfsae.trace(model, saes, "def main(", tokenizer=tokenizer)  # doctest: +SKIP
        >>> graph.strongest(3)  # doctest: +SKIP
    """

    prompt: str
    token_ids: list[int]
    tokens: list[str]
    nodes: list[Node]
    edges: Tensor
    constants: Tensor
    left_out: Tensor
    exactness: Exactness
    n_active: int
    about: dict[str, Any]
    notes: list[str]
    validation: dict[str, Any] | None = None
    pinned: list[str] = field(default_factory=list)
    supernodes: dict[str, list[str]] = field(default_factory=dict)
    attention: "list[AttentionTerms]" = field(default_factory=list)
    circuit: LocalReplacement | None = field(default=None, repr=False, compare=False)

    # -- nodes --------------------------------------------------------------------------------------------------------
    def is_kind(self, *kinds: str) -> Tensor:
        """(n,) bool: nodes of these kinds."""
        if unknown := set(kinds) - set(get_args(Kind)):
            raise ValueError(f"there are no nodes of kind {sorted(unknown)[0]!r}, but {', '.join(get_args(Kind))}.")
        return torch.tensor([node.kind in kinds for node in self.nodes], device=self.edges.device)

    @cached_property
    def weights(self) -> Tensor:
        """(n,), the probabilities of logits, 0 elsewhere."""
        probabilities = [node.probability for node in self.nodes]
        return torch.tensor(probabilities, dtype=self.edges.dtype, device=self.edges.device)

    def index(self, node: Node | str | int) -> int:
        """The row of a node.

        Args:
            node: The node, its `name`, or the row itself.

        Raises:
            ValueError: If there is none.
        """
        if isinstance(node, int):
            if not 0 <= node < len(self.nodes):
                raise ValueError(f"there is no node {node}: there are 0 to {len(self.nodes) - 1}.")
            return node
        name = node if isinstance(node, str) else node.name
        if name not in self._rows:
            raise ValueError(f"the graph has no node {name!r}; names are such as {self.nodes[0].name!r}.")
        return self._rows[name]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {node.name: row for row, node in enumerate(self.nodes)}

    # -- what a reader picks ------------------------------------------------------------------------------------------
    def pin(self, *nodes: Node | str | int) -> "Graph":
        """Keeps nodes on the page, and when the graph is pruned.

        Raises:
            ValueError: If there is no such node.
        """
        names = [self.nodes[self.index(node)].name for node in nodes]
        self.pinned = list(dict.fromkeys(self.pinned + names))
        return self

    def group(self, name: str, *nodes: Node | str | int) -> "Graph":
        """Takes nodes for one, which people call a supernode; they stay when the graph is pruned.

        Args:
            name: What the group is called. One that is there already gets the nodes too.
            *nodes: Its members, each of which leaves the group that it was in.

        Raises:
            ValueError: If there is no such node, or the name is empty.
        """
        if not name.strip():
            raise ValueError("a group needs a name that is not empty.")
        names = [self.nodes[self.index(node)].name for node in nodes]
        others = {key: [one for one in members if one not in names] for key, members in self.supernodes.items()}
        others[name] = list(dict.fromkeys([*others.get(name, []), *names]))
        self.supernodes = {key: members for key, members in others.items() if members}
        return self

    @property
    def is_picked(self) -> Tensor:
        """(n,) bool: nodes that are pinned, or in a group."""
        picked = {*self.pinned, *(name for members in self.supernodes.values() for name in members)}
        return torch.tensor([node.name in picked for node in self.nodes], device=self.edges.device)

    # -- figures ------------------------------------------------------------------------------------------------------
    @cached_property
    def influence(self) -> Tensor:
        """(n,), how much of what reaches the logits goes through each node (`hfsae.circuits.influence`)."""
        return influence.influence(self.edges, self.weights)

    @property
    def replacement_score(self) -> float:
        """The share of influence that goes from tokens to logits through features alone, from 0 to 1."""
        return influence.replacement_score(self.influence, self.is_kind("embedding"), self.is_kind("error"))

    @property
    def completeness_score(self) -> float:
        """The share of inputs, weighted by the influence of what they go into, that are no errors, from 0 to 1."""
        return influence.completeness_score(self.edges, self.influence, self.weights, self.is_kind("error"))

    def strongest(self, n: int = 10, *, kind: str = "feature") -> list[Node]:
        """The nodes of a kind with most influence, the first the strongest."""
        scores = torch.where(self.is_kind(kind), self.influence, -torch.inf)
        order = scores.argsort(descending=True, stable=True)[: min(how_many(n), int(self.is_kind(kind).sum()))]
        return [self.nodes[row] for row in order.tolist()]

    def inputs(self, node: Node | str | int, n: int = 10) -> list[tuple[Node, float]]:
        """The n edges into a node that are largest in size, with their sources."""
        return self._largest(self.edges[self.index(node)], n)

    def outputs(self, node: Node | str | int, n: int = 10) -> list[tuple[Node, float]]:
        """The n edges out of a node that are largest in size, with their targets."""
        return self._largest(self.edges[:, self.index(node)], n)

    def _largest(self, values: Tensor, n: int) -> list[tuple[Node, float]]:
        order = values.abs().argsort(descending=True, stable=True)[: how_many(n)]
        return [(self.nodes[row], float(values[row])) for row in order.tolist() if values[row] != 0]

    # -- parts of it --------------------------------------------------------------------------------------------------
    def prune(self, node_share: float = 0.8, edge_share: float = 0.98) -> "Graph":
        """The part that carries most influence; what leaves the graph is counted in `left_out`.

        Args:
            node_share: Nodes stay that together have this share of the influence. So do tokens, logits, and what is
                pinned or in a group.
            edge_share: Of the edges between them likewise.

        Raises:
            ValueError: If a share is not between 0 and 1.
        """
        for name, share in (("node_share", node_share), ("edge_share", edge_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share between 0 and 1, got {share}.")
        fixed, features = self.is_kind("embedding", "logit") | self.is_picked, self.is_kind("feature")
        nodes, kept = influence.kept_by_pruning(self.edges, self.weights, fixed, features, node_share, edge_share)
        rows = nodes.nonzero()[:, 0]
        edges = torch.where(kept, self.edges, 0.0)
        gone = (self.edges - edges).sum(1)
        return replace(
            self,
            nodes=[self.nodes[row] for row in rows.tolist()],
            edges=edges[rows][:, rows],
            constants=self.constants[rows],
            left_out=(self.left_out + gone)[rows],
        )

    # -- interventions ------------------------------------------------------------------------------------------------
    def use(
        self,
        model: "nn.Module",
        saes: "Mapping[str, SparseAutoencoder]",
        tokenizer: "PreTrainedTokenizerBase | None" = None,
    ) -> "Graph":
        """The same graph with its model, which a graph from a disk needs for `intervene` and `validate`.

        Raises:
            ValueError: As `trace`, and if its nodes have other values in this model with these SAEs.
        """
        from hfsae.circuits.clamping import circuit_of

        circuit = LocalReplacement(model, saes, torch.tensor(self.token_ids), tokenizer)
        return replace(self, circuit=circuit_of(self, circuit))

    def intervene(self, factors: Mapping[Node | str | int, float]) -> "Intervention":
        """Multiplies features and compares what the graph predicts with what the model does.

        Args:
            factors: Factor by feature node: 0 takes it away, 1 leaves it, 2 doubles it.

        Raises:
            ValueError: If a node is no feature or has two factors, one is not finite, or it has no model (`use`).
        """
        from hfsae.circuits.clamping import intervene

        return intervene(self, factors)

    def validate(self, n: int = 20, *, batch_size: int = 16) -> "Validation":
        """Takes the n strongest features away one by one, and as many others of like activation.

        What is found stays on the graph, as `validation`.

        Args:
            n: How many.
            batch_size: How many runs of the model at once.

        Raises:
            ValueError: If the graph has fewer than six features, if n is less than three, or it has no model (`use`).
        """
        from hfsae.circuits.clamping import validate

        found = validate(self, n, batch_size=batch_size)
        self.validation = found.to_dict()
        return found

    # -- attention ----------------------------------------------------------------------------------------------------
    def looks(self, query: int = -1, n: int = 10) -> "list[Look]":
        """Where heads look from a token: for each head the token that it looks at most, the surest heads first.

        Args:
            query: The token that looks; -1 is the last.
            n: How many heads.

        Raises:
            ValueError: If there is no such token, n is negative, or the graph has no model (`use`).
        """
        from hfsae.circuits.attention_terms import looks

        return looks(self._with_model(), query, n)

    def explain_attention(
        self, layer: int, head: int, *, query: int = -1, key: int | None = None, n: int = 20
    ) -> "AttentionTerms":
        """Says why a head looks from one token at another: its score, as a sum over pairs of what makes the two.

        What is found stays on the graph, as `attention`, for its page and its JSON.

        Args:
            layer: The layer.
            head: The head in it.
            query: The token that looks; -1 is the last.
            key: The token that is looked at; None takes the one that is looked at most.
            n: How many terms are listed, the largest.

        Raises:
            ValueError: If there is no such layer, head or token, n is negative, or the key is masked. Likewise if
                scores are more than queries times keys, or the graph has no model (`use`).
        """
        from hfsae.circuits.attention_terms import attention_terms

        found = attention_terms(self, self._with_model(), layer, head, query, key, n)
        self.attention = [*self.attention, found]
        return found

    def _with_model(self) -> LocalReplacement:
        if self.circuit is None:
            raise ValueError("this graph has no model: graph.use(model, saes, tokenizer) gives it one.")
        return self.circuit

    # -- elsewhere ----------------------------------------------------------------------------------------------------
    def to_json(self, *, slug: str = "graph", scan: str | None = None) -> dict[str, Any]:
        """The graph in the schema of circuit-tracer and Neuronpedia, as plain values for `json.dump`.

        Args:
            slug: What the graph is called there.
            scan: What its set of features is called there; None takes the base model's name.
        """
        from hfsae.circuits.graph_formats import to_json

        return to_json(self, slug=slug, scan=scan)

    def to_networkx(self) -> "networkx.DiGraph":
        """The graph as a `networkx.DiGraph`: nodes by name with their fields and `influence`, edges with `weight`.

        Raises:
            ImportError: If networkx is not installed.
        """
        from hfsae.circuits.graph_formats import to_networkx

        return to_networkx(self)

    def write_page(self, output: str | Path, **options: Any) -> Path:
        """Writes the graph as one HTML file that opens offline.

        Args:
            output: The file, which ends in `.html`.
            **options: As `hfsae.circuits.write_graph_page` takes them: `title`, `collections`, `labels`, ...
        """
        from hfsae.circuits.graph_page import write_graph_page

        return write_graph_page(self, output, **options)

    def save(self, path: str | Path) -> Path:
        """Writes one safetensors file that `load` reads. The model and the SAEs are not in it."""
        content = {
            "format": _FORMAT,
            "prompt": self.prompt,
            "token_ids": self.token_ids,
            "tokens": self.tokens,
            "nodes": [asdict(node) for node in self.nodes],
            "exactness": asdict(self.exactness),
            "n_active": self.n_active,
            "about": self.about,
            "notes": self.notes,
            "validation": self.validation,
            "pinned": self.pinned,
            "supernodes": self.supernodes,
            "attention": [asdict(found) for found in self.attention],
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        write_tensors(path, tensors, {"graph": json.dumps(content)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Graph":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it holds something else.
        """
        from hfsae.circuits.attention_terms import AttentionTerms

        with open_tensors(path) as file:
            header = json.loads((file.metadata() or {}).get("graph", "{}"))
            if header.get("format") != _FORMAT:
                raise ValueError(f"{path} is no graph of format {_FORMAT}, as graph.save writes it.")
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        del header["format"]
        header["nodes"] = [Node(**node) for node in header["nodes"]]
        header["exactness"] = Exactness(**header["exactness"])
        header["attention"] = [AttentionTerms.of(found) for found in header.get("attention", [])]
        return cls(**header, **tensors)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{int(self.is_kind(kind).sum())} {kind}s" for kind in ("feature", "error", "logit"))
        return (
            f"Graph({self.prompt!r}, {kinds}, replacement {self.replacement_score:.2f}, "
            f"completeness {self.completeness_score:.2f})"
        )
