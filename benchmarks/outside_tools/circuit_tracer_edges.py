"""Draws an attribution graph with circuit-tracer and takes processor time; reads a graph that hfsae wrote.

    python circuit_tracer_edges.py SET LANGUAGE_MODEL INPUTS JSON OUT MAX_FEATURES

INPUTS holds `ids` (length,) of a prompt. Learned positions are added to circuit-tracer's token vectors, which have
the token's embedding alone, so that its embedding nodes hold what enters the blocks. JSON is a graph that hfsae wrote,
which circuit-tracer's own model of the schema validates. Writes OUT/edges.safetensors: `active`, the layer, position
and index of every active feature, `selected` among them, `values`, `adjacency`, `logits` and their `probabilities`.
Also what pruning keeps (`nodes`, `edges`), `scores`, and `seconds` of three runs.
"""

import json
import sys
import time
from pathlib import Path

import torch
import yaml
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.frontend.graph_models import Model
from circuit_tracer.graph import compute_graph_scores, prune_graph
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from lens import lens_model
from safetensors.torch import load_file, save_file


def main(folder: str, model: str, inputs: str, graph_json: str, out: str, max_features: str) -> None:
    """Computes and writes."""
    Model.model_validate(json.loads(Path(graph_json).read_text()))
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    paths = {i: f"{folder}/layer_{i}.safetensors" for i in range(len(list(Path(folder).glob("layer_*.safetensors"))))}
    names = {name: config[name] for name in ("scan", "feature_input_hook", "feature_output_hook")}
    transcoders = load_transcoder_set(paths, **names, device=torch.device("cpu"))
    replacement = lens_model(model, TransformerLensReplacementModel)
    replacement._configure_replacement_model(transcoders)
    ids, setup = load_file(inputs)["ids"], replacement.setup_attribution

    def with_positions(tokens):
        context = setup(tokens)
        context.token_vectors = context.token_vectors + replacement.W_pos[: len(ids)].detach()
        return context

    replacement.setup_attribution = with_positions
    seconds = []
    for _ in range(3):
        start = time.process_time()
        graph = attribute(ids, replacement, max_feature_nodes=int(max_features), batch_size=64, verbose=False)
        seconds.append(time.process_time() - start)
    nodes, edges, _ = prune_graph(graph)
    found = {
        "active": graph.active_features,
        "selected": graph.selected_features,
        "values": graph.activation_values,
        "adjacency": graph.adjacency_matrix,
        "logits": graph.logit_token_ids,
        "probabilities": graph.logit_probabilities,
        "nodes": nodes,
        "edges": edges,
        "scores": torch.tensor(compute_graph_scores(graph)),
        "seconds": torch.tensor(seconds),
    }
    save_file({name: tensor.detach().contiguous() for name, tensor in found.items()}, Path(out) / "edges.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
