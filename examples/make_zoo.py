"""Trains a small zoo on the embedded language model: every architecture, at two layers, at two sparsities.

One run trains them all on one stream, measures them on held-out text and saves each with its card. Offline, in a few
minutes on two cores:

    python examples/make_zoo.py

With `--push_to org/zoo` they are pushed in one commit, with a root card that lists them; `--cards model_cards/zoo`
writes their cards alone, without weights, as they stand in this repository.
"""

import argparse
import logging
import os
import shutil
from pathlib import Path

from hfsae import SAE, SAETrainer, SAETrainingArguments, list_saes, push_saes
from hfsae.architectures import Crosscoder, CrossLayer, MatchingPursuitSAE, architectures
from hfsae.hub.card import CARD_FILE, DASHBOARD_FILE, render_card
from hfsae.hub.listing import render_listing
from hfsae.hub.score_summary import SCORES_FILE

HERE = Path(__file__).resolve().parent
LAYERS = (1, 2)
SPARSITIES = (8, 32)
N_FEATURES = 512
TRAINING_TOKENS, EVAL_TOKENS = 500_000, 8_000
SEED = 0
REPO_ID, LICENSE = "hfsae/tiny-lm-zoo", "apache-2.0"


def members() -> dict[str, dict[str, object]]:
    """What each SAE is told that the others are not, by its folder in the zoo."""
    return {
        f"resid_post.{layer}/{name}-{N_FEATURES}-{k}": {
            "hook_point": f"resid_post.{layer}",
            "architecture": name,
            "k": k,
            **({} if sae_class.default_sparsity_coefficient is None else {"target_l0": k}),
        }
        for layer in LAYERS
        for name, sae_class in architectures().items()
        # Those read several places, or all encoder rows k times; what reads features takes them for positive.
        if not issubclass(sae_class, Crosscoder | CrossLayer | MatchingPursuitSAE) and not sae_class.signed
        for k in SPARSITIES
    }


def arguments(
    folder: Path, training_tokens: int = TRAINING_TOKENS, eval_tokens: int = EVAL_TOKENS
) -> SAETrainingArguments:
    """What all SAEs of the zoo share."""
    return SAETrainingArguments(
        output_dir=str(folder),
        overwrite_output_dir=True,
        model_name_or_path=os.path.relpath(HERE / "tiny_lm"),
        dataset_name="python-stdlib",
        eval_dataset_name="python-stdlib",
        eval_dataset_split="held_out",
        eval_tokens=eval_tokens,
        n_features=N_FEATURES,
        training_tokens=training_tokens,
        train_batch_tokens=1024,
        calibration_tokens=16_384,
        save_steps=0,
        seed=SEED,
    )


def write_cards(folder: Path, cards: Path, repo_id: str) -> None:
    """Writes the cards of a zoo, with pictures, scores and dashboards, as a push to `repo_id` would; no weights."""
    shutil.rmtree(cards, ignore_errors=True)
    entries = list_saes(folder)
    for entry in entries:
        saved, name = folder / entry.name, entry.name
        (cards / name).mkdir(parents=True)
        for pattern in ("*.png", SCORES_FILE, DASHBOARD_FILE):
            for file in saved.glob(pattern):
                shutil.copy(file, cards / name / file.name)
        sae = SAE.from_pretrained(saved)
        card = render_card(sae, repo_id=repo_id, subfolder=name, folder=cards / name, license=LICENSE)
        (cards / name / CARD_FILE).write_text(str(card), encoding="utf-8")
    (cards / CARD_FILE).write_text(str(render_listing(entries, repo_id=repo_id, license=LICENSE)), encoding="utf-8")


def main(command_line: list[str] | None = None) -> None:
    """Makes the zoo, and does with it what was asked for."""
    parser = argparse.ArgumentParser(description="Trains, measures and shares a small zoo of SAEs.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/zoo"), help="where the zoo is saved")
    parser.add_argument("--training_tokens", type=int, default=TRAINING_TOKENS, help="tokens to train on")
    parser.add_argument("--eval_tokens", type=int, default=EVAL_TOKENS, help="tokens to measure on")
    parser.add_argument("--cards", type=Path, help="folder to write the cards to, without weights")
    parser.add_argument("--push_to", help="repository to push to")
    args = parser.parse_args(command_line)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hfsae").setLevel(logging.INFO)
    run = arguments(args.output_dir, args.training_tokens, args.eval_tokens)
    SAETrainer(args=run, saes=members()).train()
    if args.cards is not None:
        write_cards(args.output_dir, args.cards, args.push_to or REPO_ID)
    if args.push_to is not None:
        names = [entry.name for entry in list_saes(args.output_dir)]
        info = push_saes({name: args.output_dir / name for name in names}, args.push_to, license=LICENSE)
        print(f"pushed to {info.repo_url}")


if __name__ == "__main__":
    main()
