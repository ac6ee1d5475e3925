"""A run that is killed again and again: one process that has imported everything, and the children it forks.

    python -m tests.training.killed FOLDER

Writes `FOLDER/outcome.json`: after every kill, the steps of the checkpoints that stood there, each of which was read
whole, and whether the child died by the kill. `FOLDER/whole` and `FOLDER/killed` end with the same run, uninterrupted
and killed.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import text, trainer

STEPS = 400
RANDOM_KILLS = 30
RENAMES = 9
"""Of one checkpoint: its stream, config, weights, their digest, the learner's values, the run, the digests of all, the
folder itself, the oldest folder's removal."""
LAST_RENAMES = 7
"""Of the end of the run: config and weights, first beside their place, then log, picture, card."""


def train(folder: Path, resume: bool) -> None:
    """A run with everything that has a state, which writes a checkpoint at every step."""
    options = {"architecture": "jumprelu", "save_steps": 1, "dead_feature_window": 100, "save_total_limit": 1}
    inputs = {"model": language_model(), "train_dataset": text(), "processing_class": pythia_like()}
    trainer(folder, steps=STEPS, inputs=inputs, **options).train(resume_from_checkpoint=resume or None)


def fork(action: Callable[[], None]) -> int:
    """Runs something in a child; gives its process id."""
    child = os.fork()
    if child:
        return child
    try:
        action()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def wait(child: int) -> int:
    """The signal that a child died of; 0 if it ended by itself and well."""
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "a child failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def steps_of(folder: Path) -> list[int]:
    """The steps of all checkpoints; reads every file of each, which fails if one is not whole."""
    steps = []
    for checkpoint in folder.glob("checkpoint-*"):
        stored = json.loads((checkpoint / "run.json").read_text())
        json.loads((checkpoint / "stream-rank-0.json").read_text())
        json.loads((checkpoint / "saes" / "state.json").read_text())
        tensors = [load_file(checkpoint / "saes" / f"{name}.safetensors") for name in ("model", "state")]
        assert all(tensor.isfinite().all() for part in tensors for tensor in part.values())
        assert stored["step"] == int(checkpoint.name.removeprefix("checkpoint-"))
        steps.append(stored["step"])
    return sorted(steps)


def steps_of_names(folder: Path) -> list[int]:
    """The steps of all checkpoints by their folders' names alone."""
    return sorted(int(checkpoint.name.removeprefix("checkpoint-")) for checkpoint in folder.glob("checkpoint-*"))


def kill_at_rename(number: int, *, after: bool) -> None:
    """Has this process die before or after a rename, counted from the next one."""
    rename, counted = os.replace, itertools.count(1)

    def replace(source, target):
        here = next(counted) == number
        if here and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace


def die_at_rename(folder: Path, number: int, *, after: bool) -> None:
    """Goes on with the run and dies at a rename."""
    kill_at_rename(number, after=after)
    train(folder, resume=bool(steps_of(folder)))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    started = time.monotonic()
    wait(fork(lambda: train(folder / "whole", resume=False)))
    seconds = time.monotonic() - started
    killed, outcome, moments = folder / "killed", [], random.Random(0)

    def note(how: str, child: int) -> None:
        outcome.append({"how": how, "signal": wait(child), "steps": steps_of(killed)})

    def kill_at_renames(count: int) -> None:
        for number, after in itertools.product(range(1, count + 1), (False, True)):
            child = fork(lambda number=number, after=after: die_at_rename(killed, number, after=after))
            note(f"{'after' if after else 'before'} rename {number}", child)

    kill_at_renames(RENAMES)
    for number in range(RANDOM_KILLS):
        child = fork(lambda: train(killed, resume=bool(steps_of(killed))))
        begin = steps_of(killed)
        # Two fifths of a run's time in all: where a machine grows faster, too, the last one comes before its end.
        time.sleep(moments.uniform(0, 0.8 * seconds / RANDOM_KILLS))
        os.kill(child, signal.SIGKILL)
        note(f"at moment {number} after {begin}", child)
    child = fork(lambda: train(killed, resume=True))
    while steps_of_names(killed) != [STEPS]:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    note("at the end", child)
    kill_at_renames(LAST_RENAMES)
    wait(fork(lambda: train(killed, resume=True)))
    (folder / "outcome.json").write_text(json.dumps(outcome, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
