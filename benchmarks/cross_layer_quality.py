"""A cross-layer transcoder beside sets of transcoders with as many features and as many parameters, on equal tokens.

    python benchmarks/cross_layer_quality.py OUT --model MODEL --text TEXT [--tokens 1000000] [--seeds 0 1]

MODEL is a language model, TEXT a file of documents or the name of a dataset. All transcoders of a seed are trained in
one run on the same activations. Each ends the same alone or in company. A set with as many parameters has the more
features a layer. What is measured is text that no run saw: the language model with all MLPs replaced at once, and
each layer by itself, from what the model itself reads. Settings of one kind belong into one OUT. A run that was ended
goes on from its last checkpoint. Each seed leaves a JSON file of figures; two tables are printed.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept import begun, ended, kept, whole_run
from torch import Tensor
from transcoder_revival import held_out
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hfsae import SAE, SAETrainer, SAETrainingArguments, evaluate_together
from hfsae.data import load_text, split_documents

CROSS_LAYER, EQUAL_FEATURES, EQUAL_PARAMETERS = "cross-layer transcoder", "equal features", "equal parameters"


def transcoders(layers: int, features: int) -> dict[str, dict[str, Any]]:
    """Arguments of all transcoders by `GROUP/LAYER`; of the cross-layer one by its name alone.

    It has one encoder row a feature, and decoder rows of which a feature has (layers + 1) / 2 on average.
    """
    every = "{}.0-" + str(layers - 1)
    ends = {"hook_point": every.format("mlp_in"), "target_hook_point": every.format("mlp_out")}
    found = {CROSS_LAYER: {"architecture": "cross_layer_transcoder", "n_features": layers * features, **ends}}
    for group, width in ((EQUAL_FEATURES, features), (EQUAL_PARAMETERS, round(features * (1 + (layers + 1) / 2) / 2))):
        for layer in range(layers):
            ends = {"hook_point": f"mlp_in.{layer}", "target_hook_point": f"mlp_out.{layer}"}
            found[f"{group}/{layer}"] = {"architecture": "batch_topk", "n_features": width, **ends}
    return found


def train(options: argparse.Namespace, layers: int, seed: int) -> dict[str, SAE]:
    """All transcoders of a seed; a run that ended has left them already."""
    run, named = options.output_dir / f"run-{seed}", transcoders(layers, options.features)
    if ended(run, named):
        return {name: SAE.from_pretrained(run / name) for name in named}
    arguments = SAETrainingArguments(
        model_name_or_path=str(options.model),
        dataset_name=str(options.text),
        k=options.k,
        training_tokens=options.tokens,
        train_batch_tokens=options.batch_tokens,
        eval_tokens=0,
        save_steps=100,
        save_total_limit=1,
        html_report=False,
        disable_tqdm=True,
        seed=seed,
        output_dir=str(run),
        resume_from_checkpoint="last" if begun(run) else None,
    )
    return whole_run(SAETrainer(args=arguments, saes=named)).saes


@torch.no_grad()
def by_layer(sae: SAE, rows: dict[str, Tensor]) -> dict[str, Any]:
    """What a transcoder, of one layer or of all, explains of each layer it writes, and which features never fire."""
    reads, writes = (str(end).split("+") for end in (sae.config.hook_point, sae.config.target_hook_point))
    y = torch.cat([rows[place] for place in writes], 1)
    x = torch.cat([rows[place] for place in reads], 1)
    firing = torch.zeros(sae.config.n_features, dtype=torch.long)
    error = torch.zeros(y.shape[1], dtype=torch.float64)
    for read, written in zip(x.split(4096), y.split(4096), strict=True):
        output = sae(read)
        firing += output.features.tokens_firing()
        error += (output.reconstruction - written).square().sum(0, dtype=torch.float64)
    variance = (y - y.mean(0)).square().sum(0, dtype=torch.float64)
    errors, variances = (one.view(len(writes), -1).sum(1) for one in (error, variance))
    return {"explained_variance": (1 - errors / variances).tolist(), "never_fired": int((firing == 0).sum())}


def measure(options: argparse.Namespace, layers: int, seed: int) -> dict[str, Any]:
    """The figures of all groups of one seed."""
    saes = {name: sae.eval() for name, sae in train(options, layers, seed).items()}
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(options.model),
        AutoTokenizer.from_pretrained(options.model),
    )
    arguments = SAETrainingArguments(dataset_name=str(options.text))
    rows = held_out(saes, arguments, options.eval_tokens, None)
    text = split_documents(load_text(str(options.text), split="train"), "evaluation")
    figures: dict[str, Any] = {}
    for group in (CROSS_LAYER, EQUAL_FEATURES, EQUAL_PARAMETERS):
        members = {name: sae for name, sae in saes.items() if name.split("/")[0] == group}
        found = [by_layer(sae, rows) for sae in members.values()]
        features = sum(sae.config.n_features for sae in members.values())
        together = evaluate_together(
            members, model.eval(), text, tokenizer, max_tokens=options.eval_tokens, disable_tqdm=True
        )
        figures[group] = {
            "features": features,
            "parameters": sum(weights.numel() for sae in members.values() for weights in sae.parameters()),
            "explained_variance": [value for one in found for value in one["explained_variance"]],
            "dead": sum(one["never_fired"] for one in found) / features,
            "together": together,
        }
    return figures


def tables(seeds: list[dict[str, Any]], layers: int) -> str:
    """Rows of two Markdown tables, figures seed by seed."""

    def of_each(group: str, name: str, form: str) -> str:
        return ", ".join(format(seed[group]["together"][name], form) for seed in seeds)

    columns = ["", "features a layer", "parameters", "L0", "CE", "KL", "loss recovered", "dead"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for group, first in seeds[0].items():
        told = [of_each(group, name, form) for name, form in zip(_FIGURES, _FORMS, strict=True)]
        dead = ", ".join(f"{seed[group]['dead']:.1%}" for seed in seeds)
        sizes = [f"{first['features'] // layers:,}", f"{first['parameters'] / 1e6:.2f} M"]
        lines.append(f"| {' | '.join([group, *sizes, *told, dead])} |")
    clean = ", ".join(format(seed[CROSS_LAYER]["together"]["ce_clean"], ".3f") for seed in seeds)
    n_tokens = seeds[0][CROSS_LAYER]["together"]["n_tokens"]
    lines += ["", f"The model itself has a cross-entropy of {clean}, on {n_tokens:,} tokens.", ""]
    lines += [f"| | {' | '.join(f'layer {layer}' for layer in range(layers))} |", "|" + "---|" * (layers + 1)]
    for group in seeds[0]:
        each = zip(*(seed[group]["explained_variance"] for seed in seeds), strict=True)
        cells = [", ".join(f"{value:.3f}" for value in values) for values in each]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join(lines)


_FIGURES, _FORMS = ("l0", "ce_spliced", "kl", "loss_recovered"), (".1f", ".3f", ".3f", ".3f")


def main() -> None:
    """Makes what is missing, and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--batch_tokens", type=int, default=2048)
    parser.add_argument("--eval_tokens", type=int, default=25_000)
    parser.add_argument("--features", type=int, default=2048, help="of a layer")
    parser.add_argument("--k", type=int, default=32, help="active features of a layer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    layers = AutoConfig.from_pretrained(options.model).num_hidden_layers
    seeds = [
        kept(options.output_dir / f"figures-{seed}.json", partial(measure, options, layers, seed))
        for seed in options.seeds
    ]
    print(tables(seeds, layers))


if __name__ == "__main__":
    main()
