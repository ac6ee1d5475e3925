"""What the KL finish gains: the same SAE trained with and without it, on equal tokens, measured on held-out text.

    python benchmarks/kl_finish.py --model MODEL --text DATASET [--hook_point resid_post.1] [--kl_tokens 0 0.1]
        [--kl_weight 1.5] [--architectures topk jumprelu] [--seeds 0 1] [--tokens 1000000]

`MODEL` is a folder or a Hub id, `DATASET` what `dataset_name` takes: a file, a Hub id, `python-stdlib`. Each run
leaves its figures in the output folder, and one that left them is not trained again: stop it and call it again. The
table has the means over seeds: explained variance, L0, the increase of the cross-entropy with the reconstruction in
place, its change against the run without a finish, KL, and the seconds of training.

With `--target_hook_point` transcoders are trained. Of several places at once they are a set, whose figures are those
of the model with all of them in place; explained variance and L0 are then means over the transcoders.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from kept import kept, whole_run

from hfsae import SAETrainer, SAETrainingArguments


def figures(args: argparse.Namespace, architecture: str, kl_tokens: float, seed: int, folder: Path) -> dict[str, Any]:
    """Trains and measures one SAE, or a set of transcoders."""
    training = SAETrainingArguments(
        output_dir=str(folder),
        overwrite_output_dir=True,
        model_name_or_path=args.model,
        dataset_name=args.text,
        hook_point=args.hook_point,
        target_hook_point=args.target_hook_point,
        architecture=architecture,
        expansion_factor=args.expansion_factor,
        k=args.k,
        context_length=args.context_length,
        training_tokens=args.tokens,
        train_batch_tokens=args.batch_tokens,
        eval_tokens=args.eval_tokens,
        kl_tokens=kl_tokens,
        kl_weight=args.kl_weight if kl_tokens else 1.0,
        lr_decay_fraction=args.lr_decay_fraction,
        seed=seed,
        save_steps=0,
        html_report=False,
        disable_tqdm=True,
    )
    run = whole_run(SAETrainer(args=training))
    found = list(run.metrics.values())
    of_all = run.together or found[0]
    return {
        "explained_variance": fmean(one["explained_variance"] for one in found),
        "l0": fmean(one["l0"] for one in found),
        "never_fired": fmean(one["dead_fraction"] for one in found),
        **{name: of_all[name] for name in ("ce_increase", "kl", "loss_recovered")},
        "seconds": (next(iter(run.saes.values())).config.training or {})["seconds"],
    }


def table(args: argparse.Namespace, rows: dict[tuple[str, float], list[dict[str, Any]]]) -> str:
    """The means over seeds as Markdown."""
    lines = [
        "| architecture | kl_tokens | explained variance | L0 | CE increase | against none | KL | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (architecture, kl_tokens), found in rows.items():
        mean = {name: fmean(one[name] for one in found) for name in found[0]}
        without = rows.get((architecture, 0.0))
        change = mean["ce_increase"] / fmean(one["ce_increase"] for one in without) - 1 if without else 0.0
        lines.append(
            f"| {architecture} | {kl_tokens:g} | {mean['explained_variance']:.4f} | {mean['l0']:.1f} "
            f"| {mean['ce_increase']:.4f} | {change:+.0%} | {mean['kl']:.4f} | {mean['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--hook_point", default="resid_post.1")
    parser.add_argument("--target_hook_point")
    parser.add_argument("--architectures", nargs="+", default=["topk"])
    parser.add_argument("--kl_tokens", nargs="+", type=float, default=[0.0, 0.1])
    parser.add_argument("--kl_weight", type=float, default=1.0)
    parser.add_argument("--lr_decay_fraction", type=float, default=0.2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--expansion_factor", type=float, default=16)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--context_length", type=int, default=128)
    parser.add_argument("--eval_tokens", type=int, default=50_000)
    parser.add_argument("--output", type=Path, default=Path("runs/kl_finish"))
    args = parser.parse_args()
    rows: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for architecture in args.architectures:
            for kl_tokens in args.kl_tokens:
                finish = f"{kl_tokens:g}x{args.kl_weight:g}" if kl_tokens else "none"
                folder = args.output / f"{architecture}-{args.lr_decay_fraction:g}-{finish}-{seed}"
                found = kept(folder / "figures.json", partial(figures, args, architecture, kl_tokens, seed, folder))
                print(folder.name, json.dumps(found), flush=True)
                rows.setdefault((architecture, kl_tokens), []).append(found)
    print(table(args, rows))


if __name__ == "__main__":
    main()
