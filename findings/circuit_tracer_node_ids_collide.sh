#!/usr/bin/env bash
# circuit-tracer 0.5.0: in a graph file, an error and a feature of layer 0 can have the same node_id.
#
# A graph's links name their ends by node_id. An error node's is "0_LAYER_POSITION", a feature's "LAYER_INDEX_POSITION":
# the error of layer l and feature l of layer 0 are one id at each position. Whoever reads the links by id, as the page
# does, joins the edges of both. Any graph in which a low feature of layer 0 is active has such a pair.
# Seen: the error of layer 3 and feature 3 of layer 0, both at position 5, are both 0_3_5; their jsNodeId differ.
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
# The module of the nodes needs pydantic alone.
"$folder/env/bin/pip" install -q --disable-pip-version-check pydantic==2.14.4
"$folder/env/bin/pip" install -q --disable-pip-version-check --no-deps circuit-tracer==0.5.0
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import importlib.util
import sys

distribution = importlib.metadata.distribution("circuit-tracer")
path = distribution.locate_file("circuit_tracer/frontend/graph_models.py")
spec = importlib.util.spec_from_file_location("graph_models", path)
graph_models = importlib.util.module_from_spec(spec)
sys.modules["graph_models"] = graph_models
spec.loader.exec_module(graph_models)
error = graph_models.Node.error_node(layer=3, pos=5)
feature = graph_models.Node.feature_node(layer=0, pos=5, feat_idx=3)
print("circuit-tracer", distribution.version, "error:", error.node_id, error.jsNodeId, "feature:", feature.node_id, feature.jsNodeId)
sys.exit(error.node_id != feature.node_id or error.node_id != "0_3_5" or error.jsNodeId == feature.jsNodeId)
PYTHON
