"""Which learning rate is best, by length of run, width and architecture: the experiment behind `learning_rate="auto"`.

    python benchmarks/learning_rate.py run --output runs/learning_rate.jsonl [--steps 300 1000 ...] [--n_features ...]
    python benchmarks/learning_rate.py fit --output runs/learning_rate.jsonl

SAEs are trained on activations of the embedded language model (residual stream after block 1, d = 128; 2²⁰ tokens of
the training split, read again where a run is longer), 4,096 tokens a step, with the default schedule, clipping and
revival, seed 0, and measured on 65,536 tokens of the held-out split. A run that is in the file is not repeated.
"""

import argparse
import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from kept import whole_run
from torch import Tensor

from hfsae import SAE, SAETrainer, SAETrainingArguments
from hfsae.architectures import config_class_of
from hfsae.configuration import SAEConfig
from hfsae.data import LMActivations, TokenBlocks, load_text
from hfsae.evaluation.formulas import explained_variance, l0
from hfsae.evaluation.sums import reconstruction_sums
from hfsae.language_model import load_base_model, load_tokenizer
from hfsae.training.schedule import auto_learning_rate

TINY_LM = Path(__file__).resolve().parent.parent / "examples" / "tiny_lm"
HOOK_POINT = "resid_post.1"
D_IN = 128
BATCH = 4096
K = 16
# Learning rates tried, as multiples of what "auto" gives.
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def activations(split: str, rows: int) -> Tensor:
    """(rows, d) activations of a split of the standard library's text, in an order of their own."""
    origin = SAEConfig(d_in=D_IN, n_features=D_IN, base_model=str(TINY_LM))
    blocks = TokenBlocks(
        load_text("python-stdlib", split=split), load_tokenizer(origin), context_length=128, batch_size=64
    )
    source = LMActivations(load_base_model(origin), blocks, HOOK_POINT)
    chunks, seen = [], 0
    while seen < rows:
        chunks.append(next(source)[HOOK_POINT])
        seen += len(chunks[-1])
    source.close()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return torch.cat(chunks)[:rows][order]


def train(architecture: str, n_features: int, steps: int, rate: float, rows: Tensor) -> SAE:
    """Trains one SAE for so many steps."""
    config_class = config_class_of(architecture)
    size = {"k": K} if "k" in config_class.__dataclass_fields__ else {}
    with tempfile.TemporaryDirectory() as folder:
        args = SAETrainingArguments(
            output_dir=folder,
            training_tokens=steps * BATCH,
            train_batch_tokens=BATCH,
            k=K,
            learning_rate=rate,
            eval_tokens=0,
            save_steps=0,
            disable_tqdm=True,
        )
        saes = config_class(d_in=D_IN, n_features=n_features, **size)
        return whole_run(SAETrainer(args=args, saes=saes, activations=rows)).sae


@torch.no_grad()
def measure(sae: SAE, rows: Tensor) -> dict[str, float]:
    """Held-out explained variance, L0 and dead share."""
    parts = []
    for part in rows.float().split(BATCH):
        features = sae.encode_sparse(part)
        parts.append(reconstruction_sums(part, sae.decode(features), features, rows.float().mean(0)))
    sums = {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
    dead = (sums["tokens_firing"] == 0).double().mean().item()
    return {"explained_variance": explained_variance(sums), "l0": l0(sums), "dead": dead}


def run(args: argparse.Namespace) -> None:
    """Trains and measures what is not in the file yet, the cheap runs first."""
    args.output.parent.mkdir(parents=True, exist_ok=True)
    done = {(r["architecture"], r["n_features"], r["steps"], r["factor"]) for r in read(args.output)}
    plan = list(product(args.architectures, args.n_features, args.steps, args.factors))
    plan = sorted((run for run in plan if run not in done), key=lambda run: run[1] * run[2])
    if not plan:
        return
    rows, held_out = activations("train", 2**20), activations("held_out", 2**16)
    for architecture, n_features, steps, factor in plan:
        rate = factor * auto_learning_rate(n_features, steps, d_in=D_IN)
        measured = measure(train(architecture, n_features, steps, rate, rows), held_out)
        entry = {"architecture": architecture, "n_features": n_features, "steps": steps, "factor": factor}
        with args.output.open("a") as file:
            file.write(json.dumps({**entry, "learning_rate": rate, **measured}) + "\n")


def read(path: Path) -> list[dict]:
    """The runs in a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def best(runs: list[dict]) -> tuple[float, float]:
    """The best learning rate among runs that differ in it alone, by a parabola through the best and its neighbours.

    Returns:
        The rate, and the explained variance measured at the best rate that was tried.
    """
    runs = sorted(runs, key=lambda run: run["learning_rate"])
    top = max(range(len(runs)), key=lambda i: runs[i]["explained_variance"])
    found = runs[top]
    if not 0 < top < len(runs) - 1:
        return found["learning_rate"], found["explained_variance"]
    near = runs[top - 1 : top + 2]
    a, b, _ = np.polyfit([math.log(r["learning_rate"]) for r in near], [r["explained_variance"] for r in near], 2)
    return math.exp(-b / (2 * a)), found["explained_variance"]


def groups(runs: list[dict]) -> Iterator[tuple[tuple, list[dict]]]:
    """Runs that differ in the learning rate alone."""
    found = defaultdict(list)
    for entry in runs:
        found[entry["architecture"], entry["n_features"], entry["steps"]].append(entry)
    yield from sorted(found.items())


def fit(args: argparse.Namespace) -> None:
    """Prints the best rates and the power law of topk's through them."""
    points = []
    print("| architecture | n_features | steps | best rate | explained variance | at auto | auto | lost by auto |")
    print("|---|---|---|---|---|---|---|---|")
    for (architecture, n_features, steps), entries in groups(read(args.output)):
        rate, variance = best(entries)
        auto = auto_learning_rate(n_features, steps, d_in=D_IN)
        at_auto = min(entries, key=lambda run: abs(math.log(run["learning_rate"] / auto)))["explained_variance"]
        print(
            f"| {architecture} | {n_features} | {steps} | {rate:.1e} | {variance:.4f} | {at_auto:.4f} | {auto:.1e} "
            f"| {variance - at_auto:.4f} |"
        )
        if architecture == "topk":
            points.append((math.log(n_features), math.log(steps), math.log(rate)))
    table = np.array(points)
    unknown = np.column_stack([np.ones(len(table)), table[:, 0] - math.log(2**14), table[:, 1] - math.log(600)])
    (constant, width, length), *_ = np.linalg.lstsq(unknown, table[:, 2], rcond=None)
    print(f"\ntopk: {math.exp(constant):.2e} · (n_features / 2¹⁴)^{width:.2f} · (steps / 600)^{length:.2f}")


def main() -> None:
    """Runs or fits."""
    parser = argparse.ArgumentParser(description="The best learning rate by length of run, width and architecture.")
    parser.add_argument("what", choices=["run", "fit"])
    parser.add_argument("--output", type=Path, default=Path("runs/learning_rate.jsonl"))
    parser.add_argument("--architectures", nargs="+", default=["topk"])
    parser.add_argument("--n_features", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument("--factors", type=float, nargs="+", default=list(FACTORS))
    args = parser.parse_args()
    run(args) if args.what == "run" else fit(args)


if __name__ == "__main__":
    main()
