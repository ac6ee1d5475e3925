"""Dead features of transcoders by how they are revived, on equal tokens. From the repository's root:

    python benchmarks/transcoder_revival.py OUT [--architectures topk --architectures gated] [--layers 0 1]
        [--seeds 0 1] [--revivals auxk] [--activations FOLDER] [any option of `hfsae train`]

Without options it is the embedded language model's `mlp_in.1` to `mlp_out.1`. All transcoders of a seed are trained
in one run on the same activations; each ends the same alone or in company. They are measured on text that no run saw:
the held-out part (`--evaluation_share`), `--measured_split`, or `--eval_dataset_name`. The figures are the share of
features that fires on none of its tokens, explained variance, the same of medians over tokens, and active features a
token. A row says how many tokens there were: a small held-out part has fewer than were asked for, and rare features
that fire on none of them. The folder OUT has a file of rows for each seed that is done, which is not trained again. A
cross-layer transcoder reads and writes all layers, whatever --layers says; give it alone, and one layer.

With `--activations` the language model reads each text once, for all seeds and for later commands that name the
folder. An interrupted pass goes on from its last whole file. All seeds then train on the text of seed 0. A later
command may train some of the layers from `FOLDER/trained`, where it names that as `--activation_cache` too.
"""

import hashlib
import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from kept import kept, whole_run
from torch import Tensor

from hfsae import SAE, SAETrainer, cache_activations
from hfsae.arguments.command_options import run_script, with_training_options
from hfsae.arguments.config_file import arguments_from
from hfsae.arguments.sae_settings import is_cross_layer
from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.command_line import NUMBERS, option
from hfsae.data import LMActivations, TokenBlocks
from hfsae.inputs.streams import runs_in_bfloat16
from hfsae.inputs.text_splits import load_texts
from hfsae.storage import appearing_whole, read_tensors, write_tensors

SMALL = {
    "model_name_or_path": "examples/tiny_lm",
    "dataset_name": "python-stdlib",
    "context_length": "128",
    "expansion_factor": "16",
    "training_tokens": "300000",
    "train_batch_tokens": "2048",
}


def train(args: SAETrainingArguments, names: list[str], layers: list[int], revivals: list[str]) -> dict[str, SAE]:
    """A transcoder for each architecture, layer and revival, by `LAYER/ARCHITECTURE/REVIVAL`."""
    saes = {
        f"{layer}/{name}/{revival}": {
            "architecture": name,
            "revival": revival,
            "hook_point": f"mlp_in.{'*' if is_cross_layer(name) else layer}",
            "target_hook_point": f"mlp_out.{'*' if is_cross_layer(name) else layer}",
        }
        for layer in layers
        for name in names
        for revival in revivals
    }
    return whole_run(SAETrainer(args=args, saes=saes)).saes


def passes(sae: SAE, args: SAETrainingArguments, text: Any, places: list[str]) -> LMActivations:
    """The language model over a text once, in the precision that training reads."""
    left_out = {"exclude_special_tokens": args.exclude_special_tokens, "exclude_positions": args.exclude_positions}
    sizes = {"context_length": args.context_length, "batch_size": args.lm_batch_sequences}
    blocks = TokenBlocks(text, sae.load_tokenizer(), repeat=False, **sizes, **left_out)
    model = sae.load_base_model()
    narrow = torch.bfloat16 if runs_in_bfloat16(args, model, model.device) else None
    return LMActivations(model, blocks, places, dtype=torch.float32, autocast_dtype=narrow)


def held_out(saes: dict[str, SAE], args: SAETrainingArguments, tokens: int, kept_in: Path | None) -> dict[str, Tensor]:
    """Activations of so many tokens of unseen text at most, at all places that the transcoders read or write."""
    both = (str(end) for one in saes.values() for end in (one.config.hook_point, one.config.target_hook_point))
    places = sorted({place for end in both for place in end.split("+")})
    texts = load_texts(replace(args, eval_tokens=tokens), None, None)
    source = passes(next(iter(saes.values())), args, texts.evaluation, places)
    how = [args.context_length, args.exclude_positions, args.lm_batch_sequences, places]
    told = json.dumps([args.model_name_or_path, texts.measured.recorded(), how])
    folder = None if kept_in is None else kept_in / hashlib.sha256(told.encode()).hexdigest()[:12]
    parts: list[dict[str, Tensor]] = []
    while sum(len(part[places[0]]) for part in parts) < tokens:
        file = None if folder is None else folder / f"{len(parts):05d}.safetensors"
        try:
            if file is not None and file.is_file():
                parts.append(read_tensors(file))
                source.skip()
                continue
            parts.append({place: rows.clone() for place, rows in next(source).items()})
        except StopIteration:
            break
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            with appearing_whole(file) as beside:
                write_tensors(beside, parts[-1])
    source.close()
    return {place: torch.cat([part[place] for part in parts])[:tokens] for place in places}


@torch.no_grad()
def measure(sae: SAE, rows: dict[str, Tensor]) -> dict[str, float]:
    """What a transcoder explains of rows, how many features it uses for that, and how many it never uses."""
    ends = str(sae.config.hook_point), str(sae.config.target_hook_point)
    x, y = (torch.cat([rows[place] for place in end.split("+")], 1) for end in ends)
    firing, errors = torch.zeros(sae.config.n_features, dtype=torch.long), []
    for read, written in zip(x.split(4096), y.split(4096), strict=True):
        output = sae(read)
        firing += output.features.tokens_firing()
        errors.append((output.reconstruction - written).double().square().sum(1))
    error, variance = torch.cat(errors), (y - y.mean(0)).double().square().sum(1)
    return {
        "dead": (firing == 0).float().mean().item(),
        "explained_variance": 1 - (error.sum() / variance.sum()).item(),
        "explained_of_median_token": 1 - (error.median() / variance.median()).item(),
        "l0": firing.sum().item() / len(x),
        "measured_tokens": len(x),
    }


def trained_from(args: SAETrainingArguments, layers: list[int], folder: Path) -> SAETrainingArguments:
    """Arguments of a run that reads the activations of these layers from a cache in a folder, which is made first."""
    read, written = (",".join(f"{end}.{layer}" for layer in layers) for end in ("mlp_in", "mlp_out"))
    places = {"hook_point": read, "target_hook_point": written}
    cache_activations(replace(args, **places, seed=0, output_dir=str(folder)))
    return replace(args, activation_cache=str(folder))


def rows_of_seed(
    args: SAETrainingArguments,
    names: list[str],
    layers: list[int],
    revivals: list[str],
    measured_tokens: int,
    activations: Path | None,
) -> list[dict[str, Any]]:
    """A row of figures for each transcoder of a seed."""
    if activations is not None and args.activation_cache is None:
        args = trained_from(args, layers, activations / "trained")
    saes = train(args, names, layers, revivals)
    rows = held_out(saes, args, measured_tokens, activations)
    found = []
    for name, sae in saes.items():
        layer, architecture, revival = name.split("/")
        of_row = {"layer": int(layer), "architecture": architecture, "revival": revival, "seed": args.seed}
        found.append({**of_row, "training_tokens": args.training_tokens, **measure(sae.eval(), rows)})
    return found


@with_training_options
def main(
    output: Path,
    architectures: Annotated[list[str], option("--architectures", "Which to train.", metavar="NAME")] = [  # noqa: B006
        "topk",
        "batch_topk",
        "jumprelu",
    ],
    layers: Annotated[list[int], option("--layers", "The MLPs of which layers.", metavar=NUMBERS)] = [1],  # noqa: B006
    seeds: Annotated[list[int], option("--seeds", "Seeds of the runs.", metavar=NUMBERS)] = [0, 1],  # noqa: B006
    revivals: Annotated[list[str], option("--revivals", "Beside one another.", metavar="NAME")] = ["auxk", "repoint"],  # noqa: B006
    measured_tokens: Annotated[int, option("--measured_tokens", "Tokens of the figures, at most.")] = 100_000,
    measured_split: Annotated[
        str | None, option("--measured_split", "Text that no run saw; else the held-out part.")
    ] = None,
    activations: Annotated[
        Path | None, option("--activations", "Where activations are kept, for other seeds and commands.")
    ] = None,
    *,
    given: dict[str, str],
) -> None:
    """Trains, measures, prints a row for each transcoder."""
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            fixed = {"eval_tokens": 0, "save_steps": 0, "html_report": False, "disable_tqdm": True}
            args = arguments_from(
                {**SMALL, "hook_point": f"mlp_in.{layers[0]}", **given}, output_dir=folder, seed=seed, **fixed
            )
            if measured_split is not None:
                args = replace(args, eval_dataset_name=args.dataset_name, eval_dataset_split=measured_split)
            make = partial(rows_of_seed, args, architectures, layers, revivals, measured_tokens, activations)
            for row in kept(output / f"seed{seed}.json", make, list):
                print(row, flush=True)


if __name__ == "__main__":
    run_script(main)
