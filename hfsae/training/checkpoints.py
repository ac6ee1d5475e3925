"""Checkpoints that are always whole: written beside, synced, renamed. Safetensors and JSON, nothing pickled.

    checkpoint-500/
        run.json                     step, arguments, names of the SAEs, log so far
        stream-rank-0.json           where each process stands in the text
        saes/<name>/                 config.json, model.safetensors, state.safetensors, state.json

`SAE.from_pretrained` opens a folder of `saes/`; a single SAE has no name and lies in `saes/` itself.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig

from hfsae.loading import load_config
from hfsae.saving import quietly, write_json
from hfsae.training.arguments import SAETrainingArguments
from hfsae.training.learner import Learner

_NAME = re.compile(r"checkpoint-(\d+)")
# What a folder is called until it is whole, and again while it is being removed.
UNFINISHED = ".unfinished-"
# A checkpoint's weights lie in one file, however large: transformers would begin another after 50 GB.
_ANY_SIZE = "1000TB"


def save_checkpoint(
    output_dir: Path,
    step: int,
    learners: dict[str, Learner],
    stream_state: dict[str, Any],
    run: dict[str, Any],
    accelerator: Accelerator,
    keep: int | None,
    *,
    owners: Mapping[str, int] | None = None,
    spared: Path | None = None,
) -> Path:
    """Writes a checkpoint, then removes the oldest beyond `keep`. Called by every process.

    Args:
        output_dir: Folder of the run.
        step: Optimiser steps taken.
        learners: Everything that this process trains.
        stream_state: This process's place in the text.
        run: What else is to be stored, JSON-able.
        accelerator: The run's accelerator.
        keep: Number of checkpoints that stay; None for all.
        owners: The rank of the process that writes each of them by name; None for the main one.
        spared: One that stays whatever its age.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: If it cannot be written; what was there before is untouched.
    """
    final = output_dir / f"checkpoint-{step}"
    beside = output_dir / f"{UNFINISHED}checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        write_json(beside / f"stream-rank-{accelerator.process_index}.json", stream_state)
        for name, learner in learners.items():
            writes = (owners[name] if owners else 0) == accelerator.process_index
            _save_learner(beside / "saes" / name, learner, writes=writes)
        if accelerator.is_main_process:
            write_json(beside / "run.json", run)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _publish(beside, final)
            _remove_old(output_dir, keep, spared)
    except (OSError, SafetensorError) as error:  # safetensors has an exception of its own for a disk that is full
        shutil.rmtree(beside, ignore_errors=True)
        newest = last_checkpoint(output_dir)
        left = f"The newest whole checkpoint is {newest.name}." if newest else "There is no earlier checkpoint."
        raise OSError(f"could not write {final.name} to {output_dir}: {error}. {left}") from error
    accelerator.wait_for_everyone()
    return final


def _save_learner(folder: Path, learner: Learner, *, writes: bool) -> None:
    weights, state = learner.weights(), learner.state_dict()  # every process has its part in these
    if not writes:
        return
    with quietly():
        learner.sae.save_pretrained(folder, state_dict=weights, max_shard_size=_ANY_SIZE)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state["tensors"].items()}
    save_file(tensors, folder / "state.safetensors")
    write_json(folder / "state.json", state["values"])


def load_learner(folder: Path, learner: Learner, step_ratio: float = 1.0) -> None:
    """Puts a learner where it was when `folder` (a checkpoint) was written.

    Args:
        folder: The checkpoint.
        learner: A learner of the same name.
        step_ratio: Steps now for each step then, where the number of processes is another.

    Raises:
        ValueError: If the SAE of that name in the checkpoint is another one; says in what.
    """
    place = folder / "saes" / learner.name
    _refuse_other_sae(place, learner)
    values = json.loads((place / "state.json").read_text())
    if values["last_resampling"] is not None:
        values["last_resampling"] = round(values["last_resampling"] * step_ratio)
    state = {"tensors": load_file(place / "state.safetensors"), "values": values}
    learner.load_state_dict(load_file(place / "model.safetensors"), state)


def _refuse_other_sae(place: Path, learner: Learner) -> None:
    now, before = learner.sae.config, load_config(place)
    names = {field.name for field in fields(now)} - {field.name for field in fields(PreTrainedConfig)}
    differing = [
        f"{name} was {getattr(before, name, None)!r} and is {getattr(now, name)!r}"
        for name in ("model_type", *sorted(names - {"training", "metrics"}))
        if getattr(before, name, None) != getattr(now, name)
    ]
    if differing:
        called = f"SAE {learner.name!r}" if learner.name else "The SAE"
        raise ValueError(f"{called} of the checkpoint is another one: {'; '.join(differing)}. Resume with the same.")


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, None if there is none."""
    return max(_checkpoints(output_dir), key=_tokens_of, default=None)


def _checkpoints(output_dir: Path) -> list[Path]:
    found = (path for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name))
    return [path for path in found if (path / "run.json").is_file()]


def _tokens_of(checkpoint: Path) -> tuple[int, int]:
    """How far a checkpoint is: in tokens, since steps are larger on more processes; then in steps."""
    stored = json.loads((checkpoint / "run.json").read_text())
    return stored.get("tokens", 0), int(checkpoint.name.removeprefix("checkpoint-"))


def find_checkpoint(output_dir: Path, wanted: str) -> Path:
    """The checkpoint meant by `resume_from_checkpoint`.

    Raises:
        FileNotFoundError: If it is not there.
    """
    folder = last_checkpoint(output_dir) if wanted == "last" else Path(wanted)
    if folder is None or not (folder / "run.json").is_file():
        looked_for = f"checkpoint-* in {output_dir}" if wanted == "last" else wanted
        raise FileNotFoundError(f"no checkpoint to resume from: looked for {looked_for}.")
    return folder


class BestCheckpoint:
    """Which checkpoint of a run was the best by a logged metric.

    Args:
        args: The run's arguments; without `metric_for_best_model` there is never a best one.
        output_dir: Folder of the run.
    """

    def __init__(self, args: SAETrainingArguments, output_dir: Path):
        self._metric = args.metric_for_best_model
        more = args.greater_is_better
        self._sign = 1.0 if (more if more is not None else self._metric == "explained_variance") else -1.0
        self._output_dir = output_dir
        self._step: int | None = None
        self._value = math.nan

    @property
    def checkpoint(self) -> Path | None:
        """Its folder."""
        return None if self._step is None else self._output_dir / f"checkpoint-{self._step}"

    def observe(self, step: int, log_history: Sequence[Mapping[str, float]], names: Sequence[str]) -> None:
        """Takes in what was logged last before a checkpoint of this step.

        Raises:
            ValueError: If no such metric is logged; names those that are.
        """
        if self._metric is None or not log_history:
            return
        prefixes = [f"{name}/" if name else "" for name in names]
        values = [log_history[-1].get(prefix + self._metric) for prefix in prefixes]
        known = [value for value in values if value is not None]
        if not known:
            logged = sorted(key.removeprefix(prefixes[0]) for key in log_history[-1] if key.startswith(prefixes[0]))
            raise ValueError(f"metric_for_best_model={self._metric!r} is not logged; there are {', '.join(logged)}.")
        value = sum(known) / len(known)
        if not self._sign * value <= self._sign * self._value:  # nothing is as good as NaN
            self._step, self._value = step, value

    def state_dict(self) -> dict[str, Any] | None:
        """Its step and value; None where there is none."""
        return None if self._step is None else {"step": self._step, "metric": self._metric, "value": self._value}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Goes back to a saved state, if it was of the same metric and the checkpoint is still there."""
        if state is not None and state["metric"] == self._metric:
            self._step, self._value = state["step"], state["value"]
            if self.checkpoint is not None and not self.checkpoint.is_dir():
                self._step, self._value = None, math.nan


def _publish(beside: Path, final: Path) -> None:
    """Makes the finished folder appear under its name at once, and only when its bytes are on the disk."""
    for path in [*beside.rglob("*"), beside]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    if final.exists():  # a run that was resumed from further back comes by this step again
        _remove(final)
    os.replace(beside, final)


def _remove_old(output_dir: Path, keep: int | None, spared: Path | None) -> None:
    for path in sorted(_checkpoints(output_dir), key=_tokens_of)[:-keep] if keep else []:
        if path != spared:
            _remove(path)


def _remove(checkpoint: Path) -> None:
    # Renamed first: a half-removed folder must not look like a checkpoint.
    doomed = checkpoint.with_name(f"{UNFINISHED}old-{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
