"""Every architecture on one language model, beside the untrained SAE and PCA. From the repository's root:

    python benchmarks/architectures.py [CONFIG.yaml] [--active 32 8] [--without_revival] [any option of `hfsae train`]

The config is `hfsae/configs/tiny.yaml` unless another is given. Writes results.json to output_dir and prints a
table. All are trained in one run, on the same activations; an SAE ends the same alone or in company.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from kept import whole_run

from hfsae import SAE, SAETrainer
from hfsae.architectures import Crosscoder, CrossLayer, MatchingPursuitSAE, architectures
from hfsae.arguments.command_options import Config, run_script, with_training_options
from hfsae.arguments.config_file import arguments_from
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.command_line import NUMBERS, option
from hfsae.data import LMActivations, TokenBlocks, load_text, split_documents
from hfsae.saving import write_json

A_MILLION = 1_048_576


def train(args: SAETrainingArguments, actives: Sequence[int], revival: str) -> dict[int, dict[str, dict]]:
    """Trains every architecture with each number of active features; their metrics by that number and by name."""
    # A matching pursuit takes k encoder products a token: most of the time of all.
    of_one_place = [
        name
        for name, sae_class in architectures().items()
        if not issubclass(sae_class, Crosscoder | CrossLayer | MatchingPursuitSAE)
    ]
    wanted = [(active, architecture) for active in actives for architecture in of_one_place]
    args = replace(
        args,
        output_dir=str(Path(args.output_dir) / revival),
        revival=revival,
        # Without revival only the dead features are of interest.
        eval_tokens=args.eval_tokens if revival == "auto" else 0,
    )
    saes = {f"{architecture}-{active}": {"architecture": architecture, "k": active} for active, architecture in wanted}
    output = whole_run(SAETrainer(args=args, saes=saes))
    # The evaluated tokens are too few to tell a dead feature from a rare one.
    dead = dead_shares(output.saes, args)
    metrics: dict[int, dict[str, dict]] = {active: {} for active in actives}
    for (active, architecture), name in zip(wanted, saes, strict=True):
        metrics[active][architecture] = {**output.metrics.get(name, {}), "dead_over_a_million": dead[name]}
    return metrics


@torch.no_grad()
def dead_shares(saes: dict[str, SAE], args: SAETrainingArguments) -> dict[str, float]:
    """The share of each SAE's features that fire on none of a million tokens of the training text."""
    sae = next(iter(saes.values()))
    assert args.dataset_name is not None
    text = split_documents(load_text(args.dataset_name, split=args.dataset_split), "train")
    blocks = TokenBlocks(
        text, sae.load_tokenizer(), context_length=args.context_length, batch_size=args.lm_batch_sequences
    )
    source = LMActivations(sae.load_base_model(), blocks, sae.config.hook_point or "", dtype=torch.float32)
    firing = {name: torch.zeros(sae.config.n_features, dtype=torch.long) for name, sae in saes.items()}
    seen = 0
    for chunk in source:
        rows = next(iter(chunk.values()))
        for name, sae in saes.items():
            firing[name] += sae.encode_sparse(rows).tokens_firing()
        seen += len(rows)
        if seen >= A_MILLION:
            break
    source.close()
    return {name: (count == 0).float().mean().item() for name, count in firing.items()}


def rows(active: int, metrics: dict[str, dict], without_revival: dict[str, dict]) -> list[str]:
    """The table's rows for one number of active features, the baselines first."""
    baselines = metrics["topk"]["baselines"]
    untrained, pca = baselines["untrained"], baselines["pca"]
    lines = [
        f"| {active} | *untrained, PCA-{pca['components']}* | {untrained['l0']:.0f} "
        f"| {untrained['explained_variance']:.3f}, {pca['explained_variance']:.3f} "
        f"| {untrained['loss_recovered']:.3f}, {pca['loss_recovered']:.3f} | | | |"
    ]
    for name, measured in metrics.items():
        gap = 1 - (1 - measured["loss_recovered"]) / (1 - untrained["loss_recovered"])
        plain = f"{without_revival[name]['dead_over_a_million']:.1%}" if name in without_revival else ""
        lines.append(
            f"| {active} | {name} | {measured['l0']:.1f} | {measured['explained_variance']:.3f} "
            f"| {measured['loss_recovered']:.3f} | {gap:.0%} | {measured['dead_over_a_million']:.1%} "
            f"| {plain} |"
        )
    return lines


@with_training_options
def main(
    config: Config = "tiny",
    active: Annotated[list[int], option("--active", "Active features per token.", metavar=NUMBERS)] = [32, 8],  # noqa: B006
    without_revival: Annotated[bool, option("--without_revival", "Train each once more without revival.")] = False,
    *,
    given: dict[str, str],
) -> None:
    """Trains, measures, prints the table."""
    args = arguments_from({**given, "config": config}, overwrite_output_dir=True, save_steps=0)
    if args.target_hook_point is not None:
        sys.exit("transcoders have no untrained baseline to stand beside: compare them with `hfsae sweep`.")
    revived = train(args, active, "auto")
    plain = train(args, active, "none") if without_revival else {}
    write_json(Path(args.output_dir) / "results.json", {"auto": revived, "none": plain})
    lines = [line for number in active for line in rows(number, revived[number], plain.get(number, {}))]
    print("| active | | L0 | explained variance | loss recovered | gap closed | dead | without revival |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main)
