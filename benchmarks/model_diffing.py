"""Planted novelties of a fine-tune, found by crosscoders of every rule, by norms and by latent scaling.

    python benchmarks/model_diffing.py OUT [--tokens 2000000] [--hook_point resid_post.3] [--seeds 0 1]

The pair is that of `examples/model_diff.py`: the embedded language model, and its fine-tune on text with a new word, a
new format and a refused topic. For each seed the fine-tune is made new, the activations of both models are written
once, and crosscoders of all rules are trained side by side on them, several times over. Each crosscoder's features are
classed, and what is called the fine-tune's own is held against where the novelties stand. Settings of one kind belong
into one OUT: what is there already is kept, and a run that was ended goes on from its last checkpoint. Each crosscoder
leaves a JSON file; a table is printed.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset
from kept import begun, ended, kept, whole_run
from torch import Tensor

from hfsae import SAE, SAETrainer, SAETrainingArguments, cache_activations, diff

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from model_diff import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    NOVELTIES,
    documents,
    fine_tune,
    scores,
    shares_on_novelties,
)

RULES = {
    "batch_topk": "crosscoder",
    "topk": "topk_crosscoder",
    "jumprelu": "jumprelu_crosscoder",
    "standard": "standard_crosscoder",
}
CALLED_BY = {"norms": "norms", "both": "norms, unmasked", "scaling": "latent scaling alone"}
# Documents by their seeds: none is measured on that was trained on.
TRAINED_ON, CLASSED_ON, HELD_AGAINST = 2, 5, 4


def train(args: argparse.Namespace, seed: int, tuned: Path) -> Path:
    """Trains the crosscoders of all rules side by side, or goes on with what was begun."""
    run = args.output_dir / f"run-{seed}"
    if ended(run, args.rules):
        return run
    text = Dataset.from_dict({"text": documents(args.documents, planted=True, seed=TRAINED_ON)})
    arguments = SAETrainingArguments(
        model_name_or_path=str(args.base),
        compare_model_name_or_path=str(tuned),
        hook_point=args.hook_point,
        n_features=args.n_features,
        k=args.k,
        training_tokens=min(args.tokens, args.cached_tokens),
        train_batch_tokens=args.batch_tokens,
        eval_tokens=0,
        calibration_tokens=10_000,
        save_steps=200,
        save_total_limit=1,
        html_report=False,
        disable_tqdm=True,
        seed=seed,
        use_cpu=True,
        output_dir=str(args.output_dir / f"activations-{seed}"),
    )
    cache_activations(arguments, train_dataset=text)
    again = {"training_tokens": args.tokens, "activation_cache": arguments.output_dir, "output_dir": str(run)}
    saes = {name: {"architecture": RULES[name]} for name in args.rules}
    again["resume_from_checkpoint"] = "last" if begun(run) else None
    whole_run(SAETrainer(args=replace(arguments, **again), saes=saes))
    return run


def measure(folder: Path) -> dict[str, Any]:
    """What is called the fine-tune's own, each way, against where the novelties stand."""
    sae = SAE.from_pretrained(folder)
    model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
    held_out = documents(300, planted=True, seed=CLASSED_ON)
    found = diff(sae, model, held_out, tokenizer, max_tokens=30_000, disable_tqdm=True)
    shares = shares_on_novelties(sae, model, tokenizer, documents(150, planted=True, seed=HELD_AGAINST))
    alive = found.firing.tokens_firing > 0
    called: dict[str, Any] = {}
    for how in CALLED_BY:
        features = found.of("tuned-only", how)  # type: ignore[arg-type]
        of_novelty = {name: int((shares[name][features] >= 0.5).sum()) for name in NOVELTIES}
        base_only = found.counts(how)["base-only"]  # type: ignore[arg-type]
        told = scores(features, shares)
        told["precision"] = told["precision"] if features else None  # type: ignore[assignment]
        called[how] = {**told, "of_novelty": of_novelty, "base_only": base_only}
    ratios = found.error_ratios[:, 0]
    base, tuned = sae.decoder_rows.detach().split(sae.config.source_widths, 1)
    lengths = found.norms / found.norms.amax(1, keepdim=True)
    cosines = torch.nn.functional.cosine_similarity(base, tuned)
    own = found.of("tuned-only", "scaling")
    of_any = alive & (shares["any"] >= 0.5)
    return {
        "l0": found.firing.tokens_firing.sum().item() / found.n_tokens,
        "explained_variance": found.explained_variance,
        "live": int(alive.sum()),
        "any_live": scores(alive.nonzero()[:, 0].tolist(), shares),
        "error_ratio_of_base": {name: _sorted(ratios[alive & (shares[name] >= 0.5)]) for name in NOVELTIES},
        # Where norms stand: of all, and of features that latent scaling calls the fine-tune's own.
        "relative_norm": {
            "base": _sorted(lengths[alive, 0]),
            "tuned": _sorted(lengths[alive, 1]),
            "base_on_novelties": _sorted(lengths[of_any, 0]),
            "base_where_own": [round(value, 3) for value in lengths[own, 0].tolist()],
            "cosine_where_own": [round(value, 3) for value in cosines[own].tolist()],
            "median_cosine": cosines[alive].median().item(),
        },
        "called": called,
    }


def _sorted(values: Tensor) -> list[float]:
    return sorted(round(value, 3) for value in values.tolist())


def table(cells: dict[str, list[dict[str, Any]]]) -> str:
    """Rows of a Markdown table: means over seeds, features and novelties seed by seed."""
    lines = ["| rule | L0 | explained variance | called by | features | precision | recall |", "|" + "---|" * 7]
    for rule, seeds in cells.items():
        variance = mean(mean(cell["explained_variance"].values()) for cell in seeds)
        for how, named in CALLED_BY.items():
            told = [cell["called"][how] for cell in seeds]
            some = [one["precision"] for one in told if one["features"]]
            precision = f"{mean(some):.2f}" if some else ""
            counts = ", ".join(str(one["features"]) for one in told)
            recall = ", ".join(f"{round(one['recall'] * len(NOVELTIES))} of {len(NOVELTIES)}" for one in told)
            first = (
                f"{rule} | {mean(cell['l0'] for cell in seeds):.1f} | {variance:.3f}" if how == "norms" else " | | "
            )
            lines.append(f"| {first} | {named} | {counts} | {precision} | {recall} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--base", type=Path, default=Path(__file__).resolve().parent.parent / "examples" / "tiny_lm")
    parser.add_argument("--hook_point", default="resid_post.3")
    parser.add_argument("--steps", type=int, default=300, help="steps of the fine-tune")
    parser.add_argument("--documents", type=int, default=4000, help="documents to train on")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="tokens that the crosscoders are trained on")
    parser.add_argument("--cached_tokens", type=int, default=1_048_576, help="activations written once")
    parser.add_argument("--batch_tokens", type=int, default=512)
    parser.add_argument("--n_features", type=int, default=768)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells: dict[str, list[dict[str, Any]]] = {rule: [] for rule in args.rules}
    for seed in args.seeds:
        tuned = fine_tune(args.output_dir / f"tuned-{seed}", base=args.base, steps=args.steps, seed=seed)
        run = train(args, seed, tuned)
        for rule in args.rules:
            cells[rule].append(kept(args.output_dir / f"{rule}-{seed}.json", partial(measure, run / rule)))
    print(table(cells))


if __name__ == "__main__":
    main()
