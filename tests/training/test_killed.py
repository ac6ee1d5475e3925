"""A run that is killed at random moments, in the middle of writing too, and resumed until it is done."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.tiny import language_model, pythia_like
from tests.training.tiny import contents, text

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 400
KILLS = 4


@pytest.fixture
def config(tmp_path):
    """A run that writes a checkpoint at every step."""
    language_model().save_pretrained(tmp_path / "lm")
    pythia_like().save_pretrained(tmp_path / "lm")
    text().to_json(tmp_path / "text.jsonl")
    options = {
        "model_name_or_path": str(tmp_path / "lm"),
        "dataset_name": str(tmp_path / "text.jsonl"),
        "eval_dataset_name": None,
        "hook_point": "resid_post.1",
        "architecture": "jumprelu",
        "n_features": 48,
        "k": 4,
        "context_length": 12,
        "lm_batch_sequences": 4,
        "training_tokens": STEPS * 32,
        "train_batch_tokens": 32,
        "init_tokens": 64,
        "dead_feature_window": 100,
        "calibration_tokens": 100,
        "eval_tokens": 0,
        "save_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(options))
    return path


def start(config, folder, *options):
    command = [sys.executable, "examples/train.py", str(config), "--output_dir", str(folder), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process):
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors.decode()


def newest_step(folder):
    return max((int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*")), default=0)


def kill_after_a_while(process, folder, seconds):
    """Kills a run some time after its first new checkpoint."""
    begin = newest_step(folder)
    while newest_step(folder) == begin:
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"


def test_a_killed_run_that_is_resumed_ends_with_the_bytes_of_one_that_was_not(config, tmp_path):
    finish(start(config, tmp_path / "whole"))
    folder, moments = tmp_path / "killed", random.Random(0)
    steps = []
    for _ in range(KILLS):
        resume = ["--resume_from_checkpoint", "last"] if steps else []
        kill_after_a_while(start(config, folder, *resume), folder, moments.uniform(0, 0.5))
        steps.append(newest_step(folder))
    assert steps == sorted(set(steps)) and steps[-1] < STEPS
    finish(start(config, folder, "--resume_from_checkpoint", "last"))
    last = f"checkpoint-{STEPS}"
    assert contents(folder / last) == contents(tmp_path / "whole" / last)
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert not list(folder.glob(".unfinished-*"))
