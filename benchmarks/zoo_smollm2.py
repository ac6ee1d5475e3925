"""A zoo of SmolLM2-135M: topk, batch_topk and jumprelu, 8 and 16 times as wide, after blocks 4, 9, 14, 19 and 24.

    python benchmarks/zoo_smollm2.py --model SMOLLM2 --books BOOKS.jsonl [--output_dir runs/zoo_smollm2]
        [--tokens 1000000] [--layers 9] [--factors 8] [--architectures topk]
        [--scores] [--pages 20] [--cards model_cards/smollm2]

SMOLLM2 is a folder of the model, BOOKS.jsonl has a paragraph in `text` a line. All text is the books and Python's
standard library. The activations of all five places are cached once, in bfloat16. Then one run a place trains its
SAEs from the cache, measures them on held-out text, where they share what the model makes of it, and saves each with
its card. What is there is not made again: text, cache, runs (an interrupted one goes on from its last checkpoint),
scores, dashboards. So the command can be stopped, called again, and called for some places. The folder `figures` has
the tokens and hours of each step. `--cards` writes the cards of what is there, with scores and dashboards, without
weights.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from kept import begun, kept, whole_run
from mixed_text import books_and_library

from hfsae import SAE, SAETrainer, SAETrainingArguments, cache_activations, collect_features
from hfsae.dashboard import write_dashboard
from hfsae.dashboard.from_saved import gather
from hfsae.data import load_text, split_documents
from hfsae.hub.card import CARD_FILE, DASHBOARD_FILE
from hfsae.scores.score import KINDS
from hfsae.scores.score_saved import score_saved

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from make_zoo import write_cards  # noqa: E402  # pyright: ignore[reportMissingImports]

ALL_LAYERS = (4, 9, 14, 19, 24)
ARCHITECTURES = ("topk", "batch_topk", "jumprelu")
REPO_ID = "hfsae/smollm2-135m-zoo"


def shared(options: argparse.Namespace, text: Path) -> dict[str, Any]:
    """The arguments of the cache and of every run."""
    return {
        "model_name_or_path": os.fspath(options.model),
        "dataset_name": os.fspath(text),
        "training_tokens": options.tokens,
        "train_batch_tokens": options.batch_tokens,
        "context_length": 128,
        "lm_batch_sequences": 16,
        "seed": 0,
    }


def cache(options: argparse.Namespace, text: Path, folder: Path) -> dict[str, Any]:
    """Writes what is missing of the cache, and says what it took."""
    places = ",".join(f"resid_post.{layer}" for layer in ALL_LAYERS)
    args = SAETrainingArguments(**shared(options, text), hook_point=places, output_dir=str(folder))
    return {"rows": cache_activations(args).rows}


def members(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each SAE of a place is told that the others are not, by its folder."""
    return {
        f"{architecture}-{factor}x-{options.k}": {"architecture": architecture, "expansion_factor": factor}
        for factor, architecture in product(options.factors, options.architectures)
    }


def train(options: argparse.Namespace, text: Path, cached: Path, folder: Path) -> dict[str, Any]:
    """Trains the SAEs of a place, named by its folder, or goes on with them."""
    resumed = begun(folder)
    args = SAETrainingArguments(
        **shared(options, text),
        hook_point=folder.name,
        activation_cache=str(cached),
        k=options.k,
        eval_tokens=options.eval_tokens,
        save_steps=100,
        save_total_limit=1,
        output_dir=str(folder),
        resume_from_checkpoint="last" if resumed else None,
    )
    output = whole_run(SAETrainer(args=args, saes=members(options)))
    names = ("l0", "explained_variance", "loss_recovered", "dead_fraction")
    told = {name: {of: output.metrics[name][of] for of in names} for name in members(options)}
    return {"tokens": options.tokens, "resumed": resumed, "saes": told}


def timed(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a step says, with its hours; those of its last call where it was interrupted."""
    begin, used = time.perf_counter(), time.process_time()
    made = make()
    hours = {"hours": (time.perf_counter() - begin) / 3600, "processor_hours": (time.process_time() - used) / 3600}
    return made | hours


def scored(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Scores the SAEs of a place, beside their weights and on their cards."""
    saes, kinds = [folder / name for name in members(options)], options.score_kinds
    score_saved(saes, kinds=kinds, write=True, max_tokens=options.score_tokens)
    return {"tokens": options.score_tokens, "kinds": kinds}


def paged(folder: Path, text: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Writes a dashboard of some features of each SAE of a place, spread over all, on text that was held out."""
    held_out = split_documents(load_text(str(text)), "evaluation")
    model = tokenizer = None
    for name in members(options):
        sae = SAE.from_pretrained(folder / name).eval()
        if model is None or tokenizer is None:
            model, tokenizer = sae.load_base_model(), sae.load_tokenizer()
        shown = range(0, sae.config.n_features, -(-sae.config.n_features // options.pages))
        collect_features(
            *(sae, model, tokenizer, held_out),
            features=list(shown),
            max_tokens=options.page_tokens,
            n_top=8,
            n_sample=8,
            disable_tqdm=True,
        ).save(folder / name)
        # The report does not come with the cards.
        shown_on_page = gather(folder / name)._replace(links={"Model card": folder / name / CARD_FILE})
        write_dashboard(output=folder / name / DASHBOARD_FILE, **shown_on_page._asdict())
    return {"tokens": options.page_tokens, "features": options.pages}


def main(command_line: Sequence[str] | None = None) -> None:
    """Makes what is missing, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M")
    parser.add_argument("--books", type=Path, required=True, help="books, a paragraph in `text` a line")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/zoo_smollm2"))
    parser.add_argument("--layers", type=int, nargs="+", choices=ALL_LAYERS, default=list(ALL_LAYERS))
    parser.add_argument("--factors", type=int, nargs="+", default=[8, 16], help="features for each dimension")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="to train on (default: %(default)s)")
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--eval_tokens", type=int, default=20_000)
    parser.add_argument("--scores", action="store_true", help="score features, too")
    parser.add_argument("--score_kinds", nargs="+", choices=KINDS, default=["tokens", "absorption"])
    parser.add_argument("--score_tokens", type=int, default=30_000, help="tokens of each side of the scores")
    parser.add_argument("--pages", type=int, default=0, help="features of each SAE on its dashboard; 0: no dashboards")
    parser.add_argument("--page_tokens", type=int, default=20_000, help="tokens that examples are found in")
    parser.add_argument("--cards", type=Path, help="folder to write the cards to, without weights")
    options = parser.parse_args(command_line)
    output = options.output_dir
    zoo, steps, cached = output / "zoo", output / "figures", output / "activations"
    text = books_and_library(output / "text.jsonl", options.books)
    made = kept(steps / "cache.json", partial(timed, partial(cache, options, text, cached)))
    print(f"{made['rows']:,} rows at {len(ALL_LAYERS)} places in {made['hours']:.2f} h\n")
    for layer in options.layers:
        folder = zoo / f"resid_post.{layer}"
        run = kept(steps / f"{folder.name}.json", partial(timed, partial(train, options, text, cached, folder)))
        if set(run["saes"]) != set(members(options)):
            raise SystemExit(f"{folder} was made with other SAEs: ask for the same, or give another --output_dir.")
        print(f"{folder.name}: {run['tokens']:,} tokens, {run['processor_hours']:.2f} h of the processor\n")
        print("| SAE | L0 | explained variance | loss recovered | dead |\n|---|---|---|---|---|")
        for name, found in run["saes"].items():
            print(
                f"| {name} | {found['l0']:.1f} | {found['explained_variance']:.4f} "
                f"| {found['loss_recovered']:.4f} | {found['dead_fraction']:.1%} |"
            )
        print(flush=True)
        if options.scores:
            kept(steps / f"{folder.name}-scores.json", partial(timed, partial(scored, folder, options)))
        if options.pages:
            kept(steps / f"{folder.name}-pages.json", partial(timed, partial(paged, folder, text, options)))
    if options.cards is not None:
        write_cards(zoo, options.cards, REPO_ID)


if __name__ == "__main__":
    main()
