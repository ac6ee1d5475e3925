"""Figures that are made once, of runs that ended: what benchmarks that go on where they were interrupted share."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hfsae import SAETrainer
from hfsae.saving import write_json
from hfsae.storage import read_json
from hfsae.training.checkpoint import last_checkpoint
from hfsae.training.output import TrainOutput


def kept(file: Path, make: Callable[[], Any], kind: type = dict) -> Any:
    """What a JSON file holds, a dictionary or another kind, made first where it is not there.

    It is written whole, and read again at once: a run that goes on sees what one without interruption saw.
    """
    if not file.is_file():
        made = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, made)
    return read_json(file, kind)


def kept_line(file: Path, of: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file of JSON lines holds of something, made first and appended where it is not there.

    Args:
        file: A line for each thing: what it is, under `of`, and its figures. So it can be committed, and grows.
        of: What the thing is, with all that its figures depend on.
        make: Makes its figures.
    """
    if (found := found_line(file, of)) is None:
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"of": of, **found}) + "\n")
    return found


def found_line(file: Path, of: dict[str, Any]) -> dict[str, Any] | None:
    """What a file of JSON lines holds of something; None where it holds nothing."""
    if not file.is_file():
        return None
    with file.open(encoding="utf-8") as lines:
        told = (json.loads(line) for line in lines)
        return next(({k: v for k, v in one.items() if k != "of"} for one in told if one["of"] == of), None)


def whole_run(trainer: SAETrainer) -> TrainOutput:
    """Trains to the end: SAEs of a run that a signal stopped have no figures that anybody may keep."""
    output = trainer.train()
    if not output.completed:
        raise SystemExit("interrupted: the same command goes on from here.")
    return output


def begun(run: Path) -> bool:
    """Whether a run left a checkpoint in its folder, from which it goes on."""
    return run.exists() and last_checkpoint(run) is not None


def ended(run: Path, names: Iterable[str]) -> bool:
    """Whether the SAEs of these names are all in the folder of their run."""
    return all((run / name / "model.safetensors").is_file() for name in names)
