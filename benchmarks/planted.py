"""How well each architecture finds planted features, at its best L0, over seeds. From the repository's root:

    python benchmarks/planted.py [--seeds 0 1 2] [--active 4 8 16 32] [--tokens 400000] [--output runs/planted]

A dictionary of 256 true features in 64 dimensions is planted: they overlap, some fire in groups, some only where a
parent fires, and noise is added. Every architecture with as many features is trained on the same samples. What is
measured is how close decoder rows come to true features, alone and paired one to one (MCC), and whether partners fire
together (F1). The best L0 of an architecture is that of the highest mean MCC.

Each seed and L0 leaves one JSON file, and what is there is not trained again: an interrupted command goes on.
"""

import argparse
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept import kept, whole_run

from hfsae import SAETrainer, SAETrainingArguments
from hfsae.architectures import Crosscoder, CrossLayer, architectures
from hfsae.scores import PlantedDictionary, find_planted, ranking

FIGURES = ("mcc", "f1", "mean_max_cosine")
# Of the samples: neither those of the dictionary nor the measured ones.
_SAMPLES = 1000


def trained(planted: PlantedDictionary, active: int, seed: int, tokens: int, folder: Path) -> dict[str, Any]:
    """Trains every architecture on one sample of the dictionary, and measures it on another."""
    n_features = len(planted.directions)
    names = [name for name, one in architectures().items() if not issubclass(one, Crosscoder | CrossLayer)]
    activations, _ = planted.sample(tokens * 51 // 50, torch.Generator().manual_seed(_SAMPLES + seed))
    args = SAETrainingArguments(
        output_dir=str(folder),
        overwrite_output_dir=True,
        training_tokens=tokens,
        train_batch_tokens=1024,
        save_steps=0,
        eval_tokens=0,
        html_report=False,
        seed=seed,
    )
    saes = {name: {"architecture": name, "k": active, "n_features": n_features} for name in names}
    output = whole_run(SAETrainer(args=args, saes=saes, activations=activations))
    return {
        name: find_planted(sae.by_sign() if sae.signed else sae, planted).recorded()
        for name, sae in output.saes.items()
    }


def result(planted: PlantedDictionary, active: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What a seed and an L0 leave."""
    found = trained(planted, active, seed, args.tokens, args.output / "training")
    return {"seed": seed, "active": active, "tokens": args.tokens, "found": found}


def table(results: list[dict[str, Any]]) -> None:
    """Prints the figures of every architecture at its best L0, and an order where it counts."""
    runs: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for name, found in result["found"].items():
            for figure in FIGURES:
                runs[name, result["active"]][figure].append(found[figure]["value"])
            runs[name, result["active"]]["l0"].append(found["l0"])
    best: dict[str, int] = {}
    for name, active in runs:
        mean = sum(runs[name, active]["mcc"]) / len(runs[name, active]["mcc"])
        if name not in best or mean > sum(runs[name, best[name]]["mcc"]) / len(runs[name, best[name]]["mcc"]):
            best[name] = active
    print("| architecture | best target | L0 | MCC | F1 | mean max cosine |\n|---|---|---|---|---|---|")
    for name, active in best.items():
        cells = [_spread(runs[name, active][figure]) for figure in ("l0", *FIGURES)]
        print(f"| {name} | {active} | {' | '.join(cells)} |")
    for figure in FIGURES:
        print(f"{figure}: {ranking({name: runs[name, active][figure] for name, active in best.items()})}")


def _spread(values: list[float]) -> str:
    """The mean and the ends over seeds."""
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main(command_line: list[str] | None = None) -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(description="How well each architecture finds planted features.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the first weights and the samples")
    parser.add_argument("--active", type=int, nargs="+", default=[4, 8, 16, 32], help="L0 that is aimed at")
    parser.add_argument("--tokens", type=int, default=400_000, help="to train on (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/planted"), help="folder (default: %(default)s)")
    args = parser.parse_args(command_line)
    planted = PlantedDictionary.plant()
    results = []
    for seed in args.seeds:
        for active in args.active:
            file = args.output / f"seed{seed}-active{active}-tokens{args.tokens}.json"
            results.append(kept(file, partial(result, planted, active, seed, args)))
    table(results)


if __name__ == "__main__":
    main()
