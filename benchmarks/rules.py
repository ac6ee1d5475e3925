"""One SAE used with several k, and rules of selection beside topk, on activations of the embedded language model.

    python benchmarks/rules.py [hierarchical] [--seeds 0 1] [--tokens 400000] [--output runs/rules]

The residual stream after block 1 (d = 128), 2,048 features, batches of 4,096, all else at its default. Explained
variance is of 65,536 tokens of the held-out split, where a feature that fires on none counts as silent. Every seed
leaves one JSON file, and what is there is not trained again.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from kept import kept, whole_run
from learning_rate import BATCH, D_IN, activations, measure
from torch import Tensor

from hfsae import SAE, SAETrainer, SAETrainingArguments

KS = (4, 8, 16, 32)
_TOPK = {f"topk, k = {k}": {"k": k} for k in KS}
_NARROW = {"hierarchical": True, "hierarchical_ks": [1, 2, 4, 8, 16, 32]}
COMPARED: dict[str, dict[str, dict[str, Any]]] = {
    "hierarchical": {
        "hierarchical, k = 32": {"k": 32, "architecture_options": {"hierarchical": True}},
        "hierarchical, halved to 1": {"k": 32, "architecture_options": _NARROW},
        **_TOPK,
    },
    "abs_topk": {
        f"{rule}, {n:,} features": {"architecture": rule, "n_features": n, "k": 32}
        for n in (2048, 1024)
        for rule in ("topk", "abs_topk")
    },
    "matching_pursuit": {
        f"{rule}, k = {k}": {"architecture": rule, "k": k} for k in (8, 32) for rule in ("topk", "matching_pursuit")
    },
}
"""What is trained in one run, by the name of the comparison and its own."""


def with_several_k(sae: SAE, rows: Tensor) -> dict[str, Any]:
    """Figures with each of the k up to the SAE's own."""
    k: int = sae.config.k  # type: ignore[attr-defined]
    return {str(other): measure(sae.with_k(other), rows) for other in KS if other <= k}


def train(saes: dict[str, Any], rows: Tensor, args: argparse.Namespace, seed: int) -> dict[str, SAE]:
    """All SAEs of a comparison in one run."""
    options = SAETrainingArguments(
        output_dir=str(args.output / f"seed-{seed}"),
        overwrite_output_dir=True,
        training_tokens=args.tokens,
        train_batch_tokens=BATCH,
        eval_tokens=0,
        save_steps=0,
        html_report=False,
        disable_tqdm=True,
        seed=seed,
    )
    sizes = {"n_features": 16 * D_IN}
    plan = {f"sae{place}": {**sizes, **own} for place, own in enumerate(saes.values())}
    found = whole_run(SAETrainer(args=options, saes=plan, activations=rows)).saes
    return {name: found[f"sae{place}"] for place, name in enumerate(saes)}


def figures(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Trains and measures the SAEs of a comparison."""
    rows, held_out = activations("train", args.tokens), activations("held_out", 2**16)
    trained = train(COMPARED[args.compared], rows, args, seed)
    return {name: with_several_k(sae, held_out) for name, sae in trained.items()}


def table(results: list[dict[str, dict[str, dict[str, float]]]]) -> None:
    """Prints the mean explained variance over seeds, and the least and the largest, of every SAE and k."""
    print(f"| | {' | '.join(f'at {k}' for k in KS)} | silent |\n|---|{'---|' * (len(KS) + 1)}")
    for name in results[0]:
        cells = []
        for k in map(str, KS):
            values = [found[name][k]["explained_variance"] for found in results if k in found[name]]
            ends = "-".join(f"{end:.3f}" for end in (min(values), max(values))) if values else ""
            cells.append(f"{fmean(values):.3f} ({ends})" if values else "")
        last = [list(found[name].values())[-1]["dead"] for found in results]
        print(f"| {name} | {' | '.join(cells)} | {fmean(last):.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compared", nargs="?", choices=COMPARED, default="hierarchical")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--output", type=Path, default=Path("runs/rules"))
    args = parser.parse_args()
    results = []
    for seed in args.seeds:
        file = args.output / f"{args.compared}-{args.tokens}-{seed}.json"
        results.append(kept(file, partial(figures, args, seed)))
    table(results)


if __name__ == "__main__":
    main()
