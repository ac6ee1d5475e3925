#!/usr/bin/env bash
# llamascopium 2.0.0b34 with the transformer-lens that its own requirements allow, 4.x, cannot be imported.
#
# Its metadata asks for transformer-lens>=2.16.2 without an upper end. transformer-lens 4 has no HookedTransformer any
# more and raises an ImportError for the name, and llamascopium imports it.
# Expected: what pip resolves without a complaint can be imported.
# Seen: ImportError, "'HookedTransformer' was removed in TransformerLens 4.0"; `pip check` finds nothing.
# Exits with 0 while that is so, with 1 when it has changed.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check llamascopium==2.0.0b34 transformer-lens==4.3.0 torch==2.13.0
"$folder/env/bin/pip" check || true
"$folder/env/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import sys

required = [line for line in importlib.metadata.requires("llamascopium") if line.startswith("transformer-lens")]
version = importlib.metadata.version("transformer-lens")
print("llamascopium", importlib.metadata.version("llamascopium"), "asks for", required, "and has", version)
try:
    import llamascopium  # noqa: F401
    says = "no error"
except ImportError as error:
    says = str(error)
print(says)
sys.exit("HookedTransformer" not in says)
PYTHON
