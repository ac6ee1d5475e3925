"""Loads a set of transcoders with circuit-tracer, and draws an attribution graph with it.

    python circuit_tracer_graph.py SET LANGUAGE_MODEL INPUTS OUT

INPUTS holds `ids` (length,) of a prompt and, for each layer N, activations `x.N` (tokens, d). Writes
OUT/circuit_tracer.safetensors: `features.N` and `outputs.N` of these, and of the graph `active`, the layer, position
and index of every active feature, `values`, and `adjacency`.
"""

import sys
from pathlib import Path

import torch
import yaml
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
from lens import lens_model
from safetensors.torch import load_file, save_file


def main(folder: str, model: str, inputs: str, out: str) -> None:
    """Computes and writes."""
    config = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    paths = {i: f"{folder}/layer_{i}.safetensors" for i in range(len(list(Path(folder).glob("layer_*.safetensors"))))}
    names = {name: config[name] for name in ("scan", "feature_input_hook", "feature_output_hook")}
    transcoders = load_transcoder_set(paths, **names, device=torch.device("cpu"))
    stored, found = load_file(inputs), {}
    with torch.no_grad():
        for layer in paths:
            x = stored[f"x.{layer}"]
            found[f"features.{layer}"] = transcoders[layer].encode(x)
            found[f"outputs.{layer}"] = transcoders[layer](x)
    replacement = lens_model(model, TransformerLensReplacementModel)
    replacement._configure_replacement_model(transcoders)
    graph = attribute(stored["ids"], replacement, max_n_logits=5, batch_size=64, verbose=False)
    found |= {"active": graph.active_features, "values": graph.activation_values, "adjacency": graph.adjacency_matrix}
    file = Path(out) / "circuit_tracer.safetensors"
    save_file({name: tensor.detach().contiguous() for name, tensor in found.items()}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
