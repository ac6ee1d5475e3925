"""Circuits: which features of a prompt make which others, and what the model says.

graph = trace(model, load_saes("runs/transcoder_set"), "def main(self", tokenizer=tokenizer)
graph.strongest(5), graph.replacement_score, graph.validate(20)
"""

from hfsae.circuits.attention_terms import AttentionTerms, Look, Term
from hfsae.circuits.clamping import Ablations, Effect, Intervention, Validation
from hfsae.circuits.graph import Exactness, Graph
from hfsae.circuits.graph_page import write_graph_page
from hfsae.circuits.nodes import Node
from hfsae.circuits.tracing import trace

__all__ = [
    "Ablations",
    "AttentionTerms",
    "Effect",
    "Exactness",
    "Graph",
    "Intervention",
    "Look",
    "Node",
    "Term",
    "Validation",
    "trace",
    "write_graph_page",
]
