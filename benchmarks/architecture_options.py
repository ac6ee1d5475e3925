"""Options of an architecture beside its defaults, on equal tokens. From the repository's root:

    python benchmarks/architecture_options.py FOLDER --architecture matryoshka --options '{}' --options
        '{"prefix_balance": 0.75}' [--actives 16 32] [--seeds 0 1] [any option of `hfsae train`]

Without further options it is the residual stream of the embedded language model after block 1. All SAEs of a seed are
trained in one run on the same activations; each ends the same alone or in company. FOLDER/SEED holds them, for `hfsae
score`. FOLDER/figures.json has a row for each, and seeds that are in it are not trained again.

The table has means over seeds. Behind those of further options stands the difference from the first ones, seed by
seed: its mean and its standard deviation. Frequent features fire on more than a tenth of the tokens. The closest
decoder row is looked for among all of them.
"""

import json
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import torch
from kept import whole_run
from torch import Tensor

from hfsae import SAE, SAETrainer
from hfsae.arguments.command_options import run_script, with_training_options
from hfsae.arguments.config_file import arguments_from
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.command_line import NUMBERS, option
from hfsae.data import LMActivations, TokenBlocks, load_text, split_documents
from hfsae.saving import write_json
from hfsae.storage import read_json

SMALL = {
    "model_name_or_path": "examples/tiny_lm",
    "hook_point": "resid_post.1",
    "dataset_name": "python-stdlib",
    "context_length": "128",
    "expansion_factor": "16",
    "training_tokens": "600000",
    "train_batch_tokens": "2048",
    "eval_tokens": "50000",
}
FIGURES = ("explained_variance", "loss_recovered", "l0", "never_fired", "frequent", "closest")


@torch.no_grad()
def held_out(sae: SAE, args: SAETrainingArguments, tokens: int) -> Tensor:
    """Activations (tokens, d_in) of held-out text."""
    assert args.dataset_name is not None and sae.config.hook_point is not None
    text = split_documents(load_text(args.dataset_name, split=args.dataset_split), "evaluation")
    sizes = {"context_length": args.context_length, "batch_size": args.lm_batch_sequences}
    blocks = TokenBlocks(text, sae.load_tokenizer(), repeat=False, **sizes)
    chunks, seen = [], 0
    for chunk in LMActivations(sae.load_base_model(), blocks, sae.config.hook_point, dtype=torch.float32):
        chunks.append(chunk[sae.config.hook_point].clone())
        seen += len(chunks[-1])
        if seen >= tokens:
            break
    return torch.cat(chunks)[:tokens]


@torch.no_grad()
def measure(sae: SAE, rows: Tensor) -> dict[str, float]:
    """How often features fire on held-out activations, and how close decoder rows come."""
    firing = sum(sae.encode_sparse(part).tokens_firing() for part in rows.split(4096))
    assert isinstance(firing, Tensor)
    directions = torch.nn.functional.normalize(sae.decoder_rows.float(), dim=1)
    cosines = (directions @ directions.T).fill_diagonal_(-1.0)
    return {
        "never_fired": (firing == 0).float().mean().item(),
        "frequent": (firing > len(rows) / 10).float().mean().item(),
        "closest": cosines.amax(1).mean().item(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Means over seeds as Markdown, and how far each option is from the first one."""
    lines = [f"| k | options | {' | '.join(FIGURES)} |", f"|---|---|{'---|' * len(FIGURES)}"]
    found = {(row["k"], row["options"], row["seed"]): row for row in rows}
    first = rows[0]["options"]
    for active, options in dict.fromkeys((row["k"], row["options"]) for row in rows):
        seeds = [seed for k, own, seed in found if (k, own) == (active, options)]
        cells = []
        for name in FIGURES:
            values = [found[active, options, seed][name] for seed in seeds]
            apart = [found[active, options, seed][name] - found[active, first, seed][name] for seed in seeds]
            spread = f" ± {stdev(apart):.3f}" if len(apart) > 1 else ""
            cells.append(f"{fmean(values):.3f}" + (f" ({fmean(apart):+.3f}{spread})" if options != first else ""))
        lines.append(f"| {active} | `{options}` | {' | '.join(cells)} |")
    return "\n".join(lines)


@with_training_options
def main(
    output: Path,
    options: Annotated[list[str], option("--options", "The config's fields as JSON; may be repeated.")] = ["{}"],  # noqa: B006
    actives: Annotated[list[int], option("--actives", "Active features per token.", metavar=NUMBERS)] = [16, 32],  # noqa: B006
    seeds: Annotated[list[int], option("--seeds", "Seeds of the runs.", metavar=NUMBERS)] = [0, 1],  # noqa: B006
    measured_tokens: Annotated[int, option("--measured_tokens", "Held-out tokens for firing.")] = 100_000,
    *,
    given: dict[str, str],
) -> None:
    """Trains, measures, prints a row for each SAE and the table."""
    file = output / "figures.json"
    done = read_json(file) if file.exists() else []
    for seed in seeds:
        wanted = [
            (active, own)
            for active, own in product(actives, options)
            if not any((row["seed"], row["k"], row["options"]) == (seed, active, own) for row in done)
        ]
        if not wanted:
            continue
        names = {f"{active}-{place}-{len(done)}": (active, own) for place, (active, own) in enumerate(wanted)}
        fixed = {"save_steps": 0, "html_report": False, "disable_tqdm": True, "overwrite_output_dir": True}
        args = arguments_from({**SMALL, **given}, output_dir=str(output / str(seed)), seed=seed, **fixed)
        saes = {name: {"k": active, "architecture_options": json.loads(own)} for name, (active, own) in names.items()}
        run = whole_run(SAETrainer(args=args, saes=saes))
        rows = held_out(next(iter(run.saes.values())), args, measured_tokens)
        for name, (active, own) in names.items():
            measured = {figure: run.metrics[name][figure] for figure in ("explained_variance", "loss_recovered", "l0")}
            row = {"seed": seed, "k": active, "options": own, "sae": f"{seed}/{name}"}
            done.append({**row, **measured, **measure(run.saes[name].eval(), rows)})
            print(done[-1], flush=True)
        write_json(file, done)
    print(table(done))


if __name__ == "__main__":
    run_script(main)
