"""Every architecture on the embedded language model, beside the untrained SAE and PCA.

    python benchmarks/architectures.py [--k 32 8] [--without_revival] [--training_tokens 1500000] [--output FOLDER]

Writes results.json and prints the README's table. All architectures of one k are trained in one run, on the same
activations; an SAE ends the same alone or in company.
"""

import argparse
import json
from pathlib import Path

import torch

from hfsae import SAE, SAETrainer
from hfsae.architectures import architectures, config_class_of
from hfsae.data import LMActivations, TokenBlocks, load_text, split_documents
from hfsae.training.arguments import SAETrainingArguments
from hfsae.training.config_file import read_config

HERE = Path(__file__).resolve().parent
D_IN = 128


def train(k: int, tokens: int, revival: str, folder: Path) -> dict[str, dict]:
    """Trains every architecture with so many active features; their metrics by name."""
    given = read_config(HERE.parent / "examples" / "configs" / "tiny.yaml")
    given |= {"model_name_or_path": str(HERE.parent / "examples" / "tiny_lm"), "output_dir": str(folder), "k": k}
    given |= {"training_tokens": tokens, "revival": revival, "overwrite_output_dir": True, "save_steps": 0}
    given |= {"eval_tokens": given["eval_tokens"] if revival == "auto" else 0}
    saes = {}
    for name in architectures():
        config_class = config_class_of(name)
        size = {"k": k} if "k" in config_class.__dataclass_fields__ else {}
        saes[name] = config_class(d_in=D_IN, expansion_factor=given["expansion_factor"], **size)
    output = SAETrainer(args=SAETrainingArguments(**given), saes=saes).train()
    # 200,000 tokens are too few to tell a dead feature from a rare one.
    dead = dead_shares(output.saes)
    return {name: {**output.metrics.get(name, {}), "dead_over_a_million": dead[name]} for name in output.saes}


@torch.no_grad()
def dead_shares(saes: dict[str, SAE], tokens: int = 1_048_576) -> dict[str, float]:
    """The share of each SAE's features that fire on none of so many tokens of the training text."""
    any_sae = next(iter(saes.values()))
    blocks = TokenBlocks(
        split_documents(load_text("python-stdlib"), "train"),
        any_sae.load_tokenizer(),
        context_length=any_sae.config.context_length or 128,
        batch_size=32,
    )
    source = LMActivations(any_sae.load_base_model(), blocks, any_sae.config.hook_point or "", dtype=torch.float32)
    firing = {name: torch.zeros(sae.config.n_features, dtype=torch.long) for name, sae in saes.items()}
    seen = 0
    for chunk in source:
        rows = next(iter(chunk.values()))
        for name, sae in saes.items():
            firing[name] += sae.encode_sparse(rows).tokens_firing()
        seen += len(rows)
        if seen >= tokens:
            break
    source.close()
    return {name: (count == 0).float().mean().item() for name, count in firing.items()}


def rows(k: int, metrics: dict[str, dict], without_revival: dict[str, dict]) -> list[str]:
    """The table's rows for one number of active features, the baselines first."""
    baselines = metrics["topk"]["baselines"]
    untrained, pca = baselines["untrained"], baselines["pca"]
    lines = [
        f"| {k} | *untrained, PCA-{pca['components']}* | {untrained['l0']:.0f} "
        f"| {untrained['explained_variance']:.3f}, {pca['explained_variance']:.3f} "
        f"| {untrained['loss_recovered']:.3f}, {pca['loss_recovered']:.3f} | | |"
    ]
    for name, measured in metrics.items():
        gap = 1 - (1 - measured["loss_recovered"]) / (1 - untrained["loss_recovered"])
        dead = f"{measured['dead_fraction']:.1%}"
        if name in without_revival:
            million = measured["dead_over_a_million"], without_revival[name]["dead_over_a_million"]
            dead += f" ({million[0]:.1%} and without revival {million[1]:.1%} over 1 M)"
        lines.append(
            f"| {k} | {name} | {measured['l0']:.1f} | {measured['explained_variance']:.3f} "
            f"| {measured['loss_recovered']:.3f} | {gap:.0%} | {dead} |"
        )
    return lines


def main() -> None:
    """Trains, measures, prints the table."""
    parser = argparse.ArgumentParser(description="Every architecture on the embedded language model.")
    parser.add_argument("--k", type=int, nargs="+", default=[32, D_IN // 16])
    parser.add_argument("--training_tokens", type=int, default=1_500_000)
    parser.add_argument("--without_revival", action="store_true", help="train each once more without revival")
    parser.add_argument("--output", type=Path, default=Path("runs/architectures"))
    args = parser.parse_args()
    results, lines = {}, []
    for k in args.k:
        revived = train(k, args.training_tokens, "auto", args.output / f"k{k}")
        plain = {}
        if args.without_revival:
            plain = train(k, args.training_tokens, "none", args.output / f"k{k}-no-revival")
        results[k] = {"auto": revived, "none": plain}
        lines += rows(k, revived, plain)
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "results.json").write_text(json.dumps(results, indent=2))
    print("| active | | L0 | explained variance | loss recovered | gap closed | dead |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
