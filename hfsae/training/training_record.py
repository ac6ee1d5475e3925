"""What the config and the log of a trained SAE say about its training: text, model, steps, arguments, machine."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from hfsae.arguments.training_arguments import SAETrainingArguments
from hfsae.data.encoding import as_ranges, special_token_ids
from hfsae.hooks import inner_model
from hfsae.modeling import SAE
from hfsae.training.setup import TrainingRun
from hfsae.versions import version_of

_VERSIONS = ("hfsae", "torch", "transformers", "accelerate", "datasets")


def training_record(run: TrainingRun, name: str, state: TrainerState, seconds: float, folder: Path) -> dict[str, Any]:
    """What the card says about the training."""
    args, hook_points = run.arguments[name], run.hook_points[name]
    stored = args.stored()
    tokens = state.global_step * run.tokens_per_step
    return {
        "portable_name": hook_points.portable_name(inner_model(run.base.model)) if run.base is not None else None,
        "dataset": stored["dataset_name"] if run.base is not None else "activations given by the user",
        "split": args.dataset_split if run.base is not None else None,
        "special_tokens": _special_tokens(run),
        "dataset_digest": run.texts.digest if run.texts is not None else None,
        "model_precision": _read_in(run),
        "n_tokens": tokens,
        "steps": state.global_step,
        "batch_tokens": run.tokens_per_step,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / max(seconds, 1e-9)),
        "seed": args.seed,
        "target_l0": run.learners[name].plan.target_l0,
        "final_l0": run.learners[name].coefficient.l0,
        "evaluation": run.texts.protocol(args) if run.texts is not None and run.texts.measured.dataset else None,
        **_origin(args, run.learners[name].sae),
        "folder": os.path.abspath(folder),
        "arguments": {name: stored[name] for name in args.given()},
        "hardware": _hardware(run),
        "versions": {**{name: version_of(name) for name in _VERSIONS}, "python": platform.python_version()},
    }


def _read_in(run: TrainingRun) -> str | None:
    """What the language model's products were made in while it read what was trained on."""
    read_in = run.base.read_in if run.base is not None else None
    return None if read_in is None else str(read_in).removeprefix("torch.")


def _special_tokens(run: TrainingRun) -> list[list[int]] | None:
    """First and last ids of the tokens that the training took for special; a model's config knows few of them."""
    tokenizer = run.base.tokenizer if run.base is not None else None
    return as_ranges(special_token_ids(tokenizer)) if tokenizer is not None else None


def _origin(args: SAETrainingArguments, sae: SAE) -> dict[str, Any]:
    """The SAE that the training started from, where there is one, with its commit on the Hub."""
    if args.init_from is None:
        return {}
    return {"init_from": args.stored()["init_from"], "init_commit": getattr(sae.config, "_commit_hash", None)}


def _hardware(run: TrainingRun) -> str:
    accelerator = run.accelerator
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
    else:
        name = f"{accelerator.device.type}, {torch.get_num_threads()} threads"
    return f"{accelerator.num_processes} × {name}"


def run_record(
    run: TrainingRun, args: SAETrainingArguments, state: TrainerState, seconds: float, best: dict[str, Any] | None
) -> dict[str, Any]:
    """What the `run.json` of a checkpoint says.

    Args:
        run: The run.
        args: Its arguments as they were given: a cache tells the run some more, which nobody gives again.
        state: Its state.
        seconds: Time spent training.
        best: State of the best checkpoint so far.
    """
    return {
        "best": best,
        "step": state.global_step,
        "tokens": state.global_step * run.tokens_per_step,
        "processes": run.accelerator.num_processes,
        "text_seed": run.text_seed,
        "digests": run.digests,
        "dataset_commit": run.texts.commit if run.texts is not None else None,
        "saes": list(run.hook_points),
        "seconds": seconds,
        "folder": os.path.abspath(args.output_dir),
        "arguments": args.stored(),
        "own_arguments": {name: own.differing_from(args) for name, own in run.arguments.items()},
        "log_history": state.log_history,
    }


def flat_log(saes_log: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Figures by SAE in one dictionary, each with the SAE's name in front."""
    return {f"{name}/{key}" if name else key: value for name, log in saes_log.items() for key, value in log.items()}


def log_of(name: str, state: TrainerState) -> list[dict[str, float]]:
    """The run's log as one SAE's own: its entries without its name in front."""
    shared = ("step", "tokens", "tokens_per_second")
    if not name:
        return state.log_history
    prefix = f"{name}/"
    return [
        {
            **{key: entry[key] for key in shared},
            **{key.removeprefix(prefix): value for key, value in entry.items() if key.startswith(prefix)},
        }
        for entry in state.log_history
    ]
