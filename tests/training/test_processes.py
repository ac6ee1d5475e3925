"""Training in two processes, launched as users launch it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfsae import SAE
from tests.training.tiny import ARCHITECTURES, contents, stop_at, trainer
from tests.training.two_processes import CASES, PER_TOKEN, STEPS, train_alike

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"],
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29612"),
    ],
}


def launch(launcher: str, folder: Path, *cases: str) -> Path:
    command = [sys.executable, *LAUNCHERS[launcher], "-m", "tests.training.two_processes", str(folder), *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which two processes have trained every case."""
    return launch("torchrun", tmp_path_factory.mktemp("torchrun"), *CASES)


def of_both(folder, case):
    return [json.loads((folder / f"{case}-rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_weights_at_the_end(trained, case):
    first, second = of_both(trained, case)
    assert first == second


@pytest.mark.parametrize("architecture", PER_TOKEN)
def test_two_processes_take_the_steps_of_one_with_batches_twice_as_large(trained, tmp_path, architecture):
    alone = train_alike(tmp_path, architecture, processes=1).sae.state_dict()
    together = SAE.from_pretrained(trained / f"alike-{architecture}" / f"checkpoint-{STEPS}" / "saes").state_dict()
    for name, tensor in alone.items():
        assert torch.allclose(together[name], tensor, rtol=0, atol=1e-5), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_on_text_is_whole_and_its_files_are_written_once(trained, architecture):
    folder = trained / f"text-{architecture}"
    assert all(found["completed"] and found["steps"] == 12 for found in of_both(trained, f"text-{architecture}"))
    sae = SAE.from_pretrained(folder)
    assert sae.config.metrics["n_tokens"] > 0 and sae.config.training["n_tokens"] == 12 * 128
    assert sae.config.training["hardware"].startswith("2 × ")
    log = (folder / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [4, 8, 12]
    checkpoint = folder / "checkpoint-12"
    assert {path.name for path in checkpoint.iterdir()} == {
        *("run.json", "saes", "stream-rank-0.json", "stream-rank-1.json")
    }
    assert not list(folder.glob(".*"))


def test_features_were_revived_in_these_runs(trained):
    state = json.loads((trained / "resampled" / "checkpoint-12" / "saes" / "state.json").read_text())
    assert state["last_resampling"] == 6
    assert "auxk" in json.loads((trained / "text-topk" / "training_log.jsonl").read_text().splitlines()[-1])


def test_a_run_of_two_processes_goes_on_bit_by_bit(trained):
    whole, broken = (contents(trained / "two-parts" / name / "checkpoint-12") for name in ("whole", "broken"))
    assert whole == broken and "stream-rank-1.json" in whole


def test_a_signal_to_one_process_stops_both_after_the_same_step_with_a_checkpoint(trained):
    found = of_both(trained, "told-to-stop")
    assert not found[0]["completed"] and found[0]["steps"] < 100
    folder = trained / "told-to-stop" / f"checkpoint-{found[0]['steps']}"
    assert SAE.from_pretrained(folder / "saes").config.n_features == 48


def test_accelerate_launch_works_too(trained, tmp_path):
    launch("accelerate", tmp_path, "alike-topk")
    assert of_both(tmp_path, "alike-topk") == of_both(trained, "alike-topk")


def test_a_run_of_two_processes_goes_on_in_one(trained, tmp_path):
    shutil.copytree(trained / "two-parts" / "whole", tmp_path / "run")
    options = {"training_tokens": 20 * 64, "dead_feature_window": 100}
    output = trainer(tmp_path / "run", callbacks=[stop_at(30)], **options).train(resume_from_checkpoint=True)
    assert output.steps == 30 and output.sae.W_dec.isfinite().all()
    assert json.loads((tmp_path / "run" / "checkpoint-30" / "run.json").read_text())["tokens"] == 30 * 32
