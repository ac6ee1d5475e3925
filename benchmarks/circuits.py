"""Attribution graphs by hfsae and by circuit-tracer, of the same weights and prompt: the same edges? which is faster?

    hfsae train transcoder_set --output_dir runs/transcoder_set
    python benchmarks/circuits.py --run runs/transcoder_set --python ENVIRONMENT/bin/python

ENVIRONMENT holds circuit-tracer 0.5.0, which needs transformers below 5 (`benchmarks/outside.py` makes one). Its graph
leaves errors at position 0 out and passes on there what `skip` passes on, so what comes from position 0 is compared
apart. Both run in one thread, and processor time is taken. Prints one row a figure; `--json` keeps them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hfsae import Graph, load_saes, trace
from hfsae.circuits import influence
from hfsae.saved.convert import convert

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "benchmarks" / "outside_tools"
TINY_LM = ROOT / "examples" / "tiny_lm"
PROMPT = "def read(self, name):\n    if name in self."


def main() -> None:
    """Runs both and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--max_features", type=int, nargs="+", default=[300, 100_000])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    saes = load_saes(options.run)
    first = next(iter(saes.values()))
    model, tokenizer = first.load_base_model(), first.load_tokenizer()
    ids = torch.tensor([tokenizer.bos_token_id, *tokenizer(PROMPT)["input_ids"]])
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        convert(options.run, folder / "set", "circuit-tracer")
        save_file({"ids": ids}, folder / "inputs.safetensors")
        for most in options.max_features:
            seconds, graph = [], None
            for _ in range(3):
                start = time.process_time()
                graph = trace(model, saes, ids, tokenizer=tokenizer, max_features=most, disable_tqdm=True)
                seconds.append(time.process_time() - start)
            assert graph is not None
            (folder / "graph.json").write_text(json.dumps(graph.prune().to_json()))
            files = [folder / "set", TINY_LM, folder / "inputs.safetensors", folder / "graph.json", folder, most]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            command = [options.python, TOOLS / "circuit_tracer_edges.py", *files]
            subprocess.run(list(map(str, command)), check=True, env=environment, stdout=sys.stderr, cwd=folder)
            theirs = load_file(folder / "edges.safetensors")
            rows += [{"max_features": most, **row} for row in compared(graph, theirs, list(saes), min(seconds))]
    for row in rows:
        print(row)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2))


def compared(graph: Graph, theirs: dict[str, Tensor], names: list[str], seconds: float) -> list[dict]:
    """The figures of one graph."""
    own = {node_key(node, names): row for row, node in enumerate(graph.nodes)}
    others = their_keys(theirs, len(graph.tokens))
    shared = [key for key in others if key in own]
    elsewhere = [key for key in shared if not (key[0] in ("error", "embedding") and key[-1] == 0)]
    targets = [key for key in shared if key[0] in ("feature", "logit")]
    mine = graph.edges[[own[key] for key in targets]][:, [own[key] for key in elsewhere]]
    adjacency = theirs["adjacency"]
    given = adjacency[[others[key] for key in targets]][:, [others[key] for key in elsewhere]]
    weights = torch.zeros(len(adjacency))
    weights[-len(theirs["logits"]) :] = theirs["probabilities"]
    kinds = [key[0] for key in others]
    fixed = torch.tensor([kind in ("embedding", "logit") for kind in kinds])
    feature = torch.tensor([kind == "feature" for kind in kinds])
    error = torch.tensor([kind == "error" for kind in kinds])
    nodes, edges = influence.kept_by_pruning(adjacency, weights, fixed, feature, 0.8, 0.98)
    influences = influence.influence(adjacency, weights)
    scores = [
        influence.replacement_score(influences, torch.tensor([kind == "embedding" for kind in kinds]), error),
        influence.completeness_score(adjacency, influences, weights, error),
    ]
    features = [key for key in others if key[0] == "feature"]
    return [
        {"figure": "features", "theirs": len(features), "ours": int(graph.is_kind("feature").sum())},
        {"figure": "features that both have", "share": sum(key in own for key in features) / len(features)},
        {"figure": "edges compared", "number": mine.numel()},
        {"figure": "largest difference of an edge", "absolute": float((mine - given).abs().max())},
        {"figure": "largest edge", "absolute": float(given.abs().max())},
        {"figure": "same nodes after pruning their edges", "same": bool((nodes == theirs["nodes"]).all())},
        {"figure": "same edges after pruning their edges", "same": bool((edges == theirs["edges"]).all())},
        {"figure": "scores of their edges", "theirs": theirs["scores"].tolist(), "ours": scores},
        {"figure": "processor seconds, best of 3", "theirs": float(theirs["seconds"].min()), "ours": seconds},
        {"figure": "time by theirs", "ratio": seconds / float(theirs["seconds"].min())},
    ]


def node_key(node, names: list[str]) -> tuple:
    """What a node is called in both."""
    if node.kind == "feature":
        return ("feature", names.index(node.source), node.feature, node.position)
    return ("logit", node.token) if node.kind == "logit" else (node.kind, node.layer, node.position)


def their_keys(theirs: dict[str, Tensor], n_tokens: int) -> dict[tuple, int]:
    """The row of every node of circuit-tracer."""
    active = theirs["active"][theirs["selected"]].tolist()
    layers = (len(theirs["adjacency"]) - len(active) - n_tokens - len(theirs["logits"])) // n_tokens
    keys: list[tuple] = [("feature", layer, index, position) for layer, position, index in active]
    keys += [("error", layer, position) for layer in range(layers) for position in range(n_tokens)]
    keys += [("embedding", None, position) for position in range(n_tokens)]
    keys += [("logit", token) for token in theirs["logits"].tolist()]
    return {key: row for row, key in enumerate(keys)}


if __name__ == "__main__":
    main()
