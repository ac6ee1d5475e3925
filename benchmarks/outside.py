"""Runs other projects' tools on what hfsae writes, each in an environment of its own, and says how far they agree.

    python benchmarks/outside.py --run runs/tiny --relus runs/relus --jumps runs/jumps [--only delphi]

RUN is a TopK SAE in the embedded language model; RELUS and JUMPS are folders of transcoders of all its layers:

    hfsae train tiny --hook_point 'mlp_in.*' --target_hook_point 'mlp_out.*' --n_features 512 \
        --architecture standard --output_dir runs/relus

and the same with `--architecture jumprelu --architecture_options '{"skip": true}' --output_dir runs/jumps`.

SAEBench's core evaluates `SAEBenchView`; sae-dashboard shows an SAE exported to SAELens. Neuronpedia's client reads
`export_neuronpedia`, and sends to a server here what `upload_neuronpedia` sent there. delphi loads `export_delphi` and
an SAE exported to sparsify; circuit-tracer draws a graph with the set that `hfsae convert --to circuit-tracer` makes.
An environment that is not there is made
(--environments, about 2 GB each). Prints one row a figure; `--json` keeps them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hfsae import SAE, collect_features, export_sae
from hfsae.analysis import export_delphi, export_neuronpedia
from hfsae.data import TokenBatch, load_text
from hfsae.evaluation import evaluate_sae
from hfsae.hooks import capture
from hfsae.meaning import upload_neuronpedia
from hfsae.meaning.neuronpedia_upload import NEURONPEDIA_KEY
from hfsae.saved.convert import convert

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "benchmarks" / "outside_tools"
TINY_LM = ROOT / "examples" / "tiny_lm"

# What is installed, beside the torch that runs this. Those after a bar are installed without their own dependencies.
ENVIRONMENTS = {
    "saebench": "sae-bench==0.6.0",
    "dashboard": "sae-dashboard==0.8.0 neuronpedia==1.2.1 pyarrow<21",
    "delphi": "transformers<5 eai-sparsify==1.3.3 orjson blobfile aiofiles anyio fire asyncer beartype faiss-cpu "
    "sentence-transformers scikit-learn pandas jaxtyping einops | eai-delphi==0.1.3",
    "tracer": "circuit-tracer==0.5.0",
}
_PROMPT = "def read(self, name):\n    if name in self."


class Row(NamedTuple):
    """One figure by both sides, or how far both are apart."""

    tool: str
    figure: str
    theirs: str
    ours: str


class Place(NamedTuple):
    """Where one tool runs.

    Args:
        python: The interpreter of its environment.
        folder: An empty folder.
        runs: The folders of SAEs by name.
    """

    python: Path
    folder: Path
    runs: dict[str, Path]

    def run(self, script: str, *arguments: object) -> None:
        """Runs a script of `outside_tools`, offline."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        command = [str(self.python), str(TOOLS / script), *map(str, arguments)]
        subprocess.run(command, check=True, env=environment, stdout=sys.stderr, cwd=self.folder)


# -- SAEBench ---------------------------------------------------------------------------------------------------------
def saebench(place: Place) -> Iterator[Row]:
    """Its core evaluation, replayed here on the same tokens, none left out but special ones."""
    text = place.folder / "text"
    load_text("python-stdlib", split="train").select(range(40)).select_columns(["text"]).to_json(text / "train.jsonl")
    place.run("saebench.py", place.runs["run"], TINY_LM, text, place.folder)
    theirs = json.loads((place.folder / "metrics.json").read_text())
    tokens = load_file(place.folder / "tokens.safetensors")
    sae = SAE.from_pretrained(place.runs["run"])
    sae.config.exclude_positions = []
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    # Of other text, so that all rows are measured.
    calibration = _activations(model, _rows(tokenizer, 16, 128), str(sae.config.hook_point))
    ours = {}
    for name, ids in tokens.items():
        batches = [TokenBatch(some, torch.ones_like(some), some != tokenizer.bos_token_id) for some in ids.split(16)]
        ours[name] = evaluate_sae(sae, model, batches, calibration=calibration, disable_tqdm=True)
    for figure, group, name, which, key in (
        ("CE, clean", "model_performance_preservation", "ce_loss_without_sae", "reconstruction", "ce_clean"),
        ("CE, spliced", "model_performance_preservation", "ce_loss_with_sae", "reconstruction", "ce_spliced"),
        ("CE, zeros", "model_performance_preservation", "ce_loss_with_ablation", "reconstruction", "ce_zero"),
        ("loss recovered", "model_performance_preservation", "ce_loss_score", "reconstruction", "loss_recovered"),
        ("KL, spliced", "model_behavior_preservation", "kl_div_with_sae", "reconstruction", "kl"),
        ("L0", "sparsity", "l0", "sparsity", "l0"),
        ("cosine", "reconstruction_quality", "cossim", "sparsity", "cosine"),
        ("L2 ratio", "shrinkage", "l2_ratio", "sparsity", "l2_ratio"),
        ("explained variance", "reconstruction_quality", "explained_variance", "sparsity", "explained_variance"),
        ("MSE", "reconstruction_quality", "mse", "sparsity", "mse"),
    ):
        yield Row("SAEBench 0.6.0", figure, f"{theirs[group][name]:.6g}", f"{ours[which][key]:.6g}")


# -- sae-dashboard and Neuronpedia ------------------------------------------------------------------------------------
def dashboard(place: Place) -> Iterator[Row]:
    """The page's densities and maxima against direct encoding; Neuronpedia's client on every example."""
    sae = SAE.from_pretrained(place.runs["run"])
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    ids = _rows(tokenizer, 128, 128)
    x = _activations(model, ids, str(sae.config.hook_point))
    features = SAE.from_pretrained(export_sae(sae, place.folder / "saelens", "saelens")).encode(x).detach()
    shown = (features > 0).sum(0).argsort(descending=True)[:100].contiguous()
    save_file({"ids": ids, "features": shown}, place.folder / "tokens.safetensors")
    collection = collect_features(
        sae, model, tokenizer, load_text("python-stdlib", split="train").select(range(40)), disable_tqdm=True
    )
    exported = export_neuronpedia(
        collection, tokenizer, place.folder, model_id="tiny", layer=1, source_set="res", creator="hfsae"
    )
    examples = sum(len(feature.top) + len(feature.sample) for feature in collection)
    folders = (place.folder / "saelens", TINY_LM, place.folder / "tokens.safetensors", exported, place.folder)
    with _listening() as (url, received):
        os.environ.setdefault(NEURONPEDIA_KEY, "of nobody")
        names = {"model_id": "tiny", "layer": 1, "source_set": "res"}
        labels = {feature: f"feature {feature}" for feature in collection.features.tolist()[:50]}
        uploaded = upload_neuronpedia(collection, tokenizer, labels=labels, url=url, **names)
        ours_sent = list(received)
        (place.folder / "uploads.jsonl").write_text("".join(json.dumps(body) + "\n" for body in ours_sent))
        received.clear()
        place.run("dashboard.py", *folders, place.folder / "uploads.jsonl", url)
        same = sum(mine == theirs for mine, theirs in zip(ours_sent, received, strict=True))
    said = json.loads((place.folder / "dashboard.json").read_text())
    ours = features[:, shown]
    density = (torch.tensor(said["density"]) - (ours > 0).float().mean(0)).abs().max()
    maximum = (torch.tensor(said["maximum"]) - ours.amax(0)).abs().max() / ours.max()
    yield Row("sae-dashboard 0.8.0", "hook name", said["hook_name"], str(sae.config.training["portable_name"]))
    yield Row("sae-dashboard 0.8.0", "share of tokens, largest difference", f"{float(density):.1e}", "0")
    yield Row("sae-dashboard 0.8.0", "maximum, largest relative difference", f"{float(maximum):.1e}", "0")
    yield Row("neuronpedia 1.2.1", "examples read", f"{said['neuronpedia_rows']}", f"{examples}")
    requests = f"{len(ours_sent)}, {same} the same"
    yield Row("neuronpedia 1.2.1", f"requests that upload {uploaded} features", f"{len(received)}", requests)


@contextmanager
def _listening() -> Iterator[tuple[str, list[Any]]]:
    """A server on this machine that takes whatever is sent: its address, and the list of what came."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/api", received
    finally:
        server.shutdown()
        server.server_close()


# -- delphi -----------------------------------------------------------------------------------------------------------
def delphi(place: Place) -> Iterator[Row]:
    """The entries of its dataset and the features of its sparse coder against direct encoding."""
    sae = SAE.from_pretrained(place.runs["run"])
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    text = load_text("python-stdlib", split="train").select(range(40))
    export_delphi(sae, model, tokenizer, text, place.folder / "export", max_tokens=32_000, disable_tqdm=True)
    written = export_sae(sae, place.folder / "sparsify", "sparsify")
    ids = _rows(tokenizer, 16, 128)
    x = _activations(model, ids, str(sae.config.hook_point))
    save_file({"x": x}, place.folder / "x.safetensors")
    arguments = (place.folder / "export", written.parent, written.name, TINY_LM, place.folder / "x.safetensors")
    place.run("delphi_loader.py", *arguments, place.folder)
    theirs = load_file(place.folder / "delphi.safetensors")
    rows, (row, position, feature) = theirs["tokens"], theirs["locations"].unbind(1)
    encoded = sae.encode(_activations(model, rows, str(sae.config.hook_point))).view(*rows.shape, -1)
    kept = rows != tokenizer.bos_token_id
    kept[:, sae.config.exclude_positions] = False
    entries = int((encoded * kept[..., None] > 0).sum())
    found = encoded.detach()
    difference = (found[row, position, feature] - theirs["activations"].float()).abs().max() / found.max()
    yield Row("delphi 0.1.3", "entries", f"{len(row)}", f"{entries}")
    yield Row("delphi 0.1.3", "activations (float16), largest relative difference", f"{float(difference):.1e}", "0")
    apart = _apart(theirs["features"], sae.encode(x))
    yield Row("delphi 0.1.3", "features of its sparse coder, largest relative difference", f"{apart:.1e}", "0")


# -- circuit-tracer ---------------------------------------------------------------------------------------------------
def tracer(place: Place) -> Iterator[Row]:
    """Features and outputs of every layer, and the active features of a graph against those of `attach`."""
    for kind in ("relus", "jumps"):
        folder = place.folder / kind
        convert(place.runs[kind], folder / "set", "circuit-tracer")
        saes = [SAE.from_pretrained(place.runs[kind], subfolder=f"mlp_in.{layer}") for layer in range(4)]
        model, tokenizer = saes[0].load_base_model(), saes[0].load_tokenizer()
        ids = torch.tensor([tokenizer.bos_token_id, *tokenizer(_PROMPT)["input_ids"]])
        rows = _rows(tokenizer, 8, 128)
        x = {f"x.{layer}": _activations(model, rows, str(sae.config.hook_point)) for layer, sae in enumerate(saes)}
        save_file({"ids": ids, **x}, folder / "inputs.safetensors")
        place.run("circuit_tracer_graph.py", folder / "set", TINY_LM, folder / "inputs.safetensors", folder)
        theirs = load_file(folder / "circuit_tracer.safetensors")
        features = max(_apart(theirs[f"features.{i}"], sae.encode(x[f"x.{i}"])) for i, sae in enumerate(saes))
        outputs = max(_apart(theirs[f"outputs.{i}"], sae(x[f"x.{i}"]).reconstruction) for i, sae in enumerate(saes))
        name = f"circuit-tracer 0.5.0, {'ReLU' if kind == 'relus' else 'JumpReLU with skip'}"
        yield Row(name, "features of 4 layers, largest relative difference", f"{features:.1e}", "0")
        yield Row(name, "outputs of 4 layers, largest relative difference", f"{outputs:.1e}", "0")
        active = {tuple(node) for node in theirs["active"].tolist()}
        mine = set(_active(saes, model, ids))
        yield Row(name, "active features of a graph", f"{len(active)}", f"{len(mine)}, {len(active & mine)} the same")
        finite = bool(theirs["adjacency"].isfinite().all())
        yield Row(name, "nodes of the graph", f"{len(theirs['adjacency'])}, {'all' if finite else 'not'} finite", "")


def _active(saes: list[SAE], model: Any, ids: Tensor) -> Iterator[tuple[int, int, int]]:
    """Layer, position and index of features on a prompt, position 0 left out as circuit-tracer does it."""
    for layer, sae in enumerate(saes):
        features = sae.encode(_activations(model, ids[None], str(sae.config.hook_point)))
        features[0] = 0
        yield from ((layer, position, index) for position, index in (features > 0).nonzero().tolist())


def _rows(tokenizer: Any, n_rows: int, length: int) -> Tensor:
    """(n_rows, length) tokens of text, each row starting with BOS."""
    found: list[int] = []
    for row in load_text("python-stdlib", split="train"):
        found += tokenizer(row["text"])["input_ids"]  # type: ignore[index]
        if len(found) >= n_rows * (length - 1):
            break
    body = torch.tensor(found[: n_rows * (length - 1)]).view(n_rows, length - 1)
    return torch.cat([torch.full((n_rows, 1), tokenizer.bos_token_id), body], 1)


def _activations(model: Any, ids: Tensor, place: str) -> Tensor:
    """(tokens, d) at a place."""
    with torch.no_grad(), capture(model, place) as activations:
        return torch.cat([activations.run(input_ids=some)[place].flatten(0, 1) for some in ids.split(16)])


def _apart(theirs: Tensor, ours: Tensor) -> float:
    """The largest difference in units of the largest value."""
    return float((theirs - ours).abs().max() / ours.abs().max())


CHECKS: dict[str, Callable[[Place], Iterator[Row]]] = {
    "saebench": saebench,
    "dashboard": dashboard,
    "delphi": delphi,
    "tracer": tracer,
}


def environment(name: str, root: Path) -> Path:
    """The interpreter of an environment, which is made where it is missing."""
    python = root / f"outside-{name}" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        with_dependencies, _, alone = ENVIRONMENTS[name].partition("|")
        # Without a local part ("+cpu"), which PyPI does not have; where such a one is at hand, pip prefers it.
        version = torch.__version__.partition("+")[0]
        subprocess.run([*install, f"torch=={version}", *with_dependencies.split()], check=True)
        if alone:
            subprocess.run([*install, "--no-deps", *alone.split()], check=True)
        # The one that they pull in need not fit this torch, and transformers then fails on import.
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=True)
    return python


def main() -> None:
    """Runs the tools and prints the table."""
    parser = argparse.ArgumentParser(description="Other projects' tools on what hfsae writes.")
    parser.add_argument(
        "--run", type=Path, default=Path("runs/tiny"), help="a TopK SAE in the embedded language model"
    )
    parser.add_argument("--relus", type=Path, default=Path("runs/relus"), help="ReLU transcoders of all layers")
    parser.add_argument("--jumps", type=Path, default=Path("runs/jumps"), help="JumpReLU transcoders with a skip")
    parser.add_argument("--environments", type=Path, default=Path("runs/environments"))
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    runs = {name: getattr(args, name).resolve() for name in ("run", "relus", "jumps")}
    rows: list[Row] = []
    print("| tool | figure | there | hfsae |\n|---|---|---|---|")
    for name in args.only:
        python = environment(name, args.environments.resolve())
        with tempfile.TemporaryDirectory() as folder:
            for row in CHECKS[name](Place(python, Path(folder), runs)):
                rows.append(row)
                print(f"| {' | '.join(row)} |", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps([row._asdict() for row in rows], indent=2))


if __name__ == "__main__":
    main()
