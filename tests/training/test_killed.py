"""A run that is killed at random moments, and before and after every rename, and resumed until it is done."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.killed import LAST_RENAMES, RANDOM_KILLS, RENAMES, STEPS
from tests.training.tiny import contents

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """The folder of `tests.training.killed`, and what stood there after every kill."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.training.killed", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads((folder / "outcome.json").read_text())


def test_no_kill_leaves_half_a_checkpoint_or_costs_more_than_one_interval(outcome):
    """`tests.training.killed` has read every file of every checkpoint after each kill."""
    _, kills = outcome
    assert len(kills) == 2 * RENAMES + RANDOM_KILLS + 1 + 2 * LAST_RENAMES
    newest = [max(kill["steps"], default=0) for kill in kills]
    assert newest == sorted(newest)
    assert all(
        kill["signal"] == signal.SIGKILL for kill in kills if "rename" in kill["how"] or "moment" in kill["how"]
    )


def test_a_kill_at_a_rename_loses_the_step_in_the_making_and_no_other(outcome):
    """A run that dies before its checkpoint has its name takes that step again; one that dies after it does not."""
    _, kills = outcome
    before = 0
    for kill in kills[: 2 * RENAMES]:
        newest = max(kill["steps"], default=0)
        published = kill["how"] in ("after rename 8", "before rename 9", "after rename 9")
        assert newest - before == published, kill
        before = newest


def test_the_run_ends_with_the_bytes_of_one_that_was_not_killed(outcome):
    folder, _ = outcome
    last = f"checkpoint-{STEPS}"
    assert contents(folder / "killed" / last) == contents(folder / "whole" / last)
    ends = [(folder / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert ends[0] == ends[1]
    assert not [path for path in (folder / "killed").rglob(".*")]
