"""The main job, as a stranger runs it: train, measure, save; load back in a new process and measure again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def run(*command: str) -> str:
    """Runs an example offline, from the repository's root.

    In one thread: where other tests take a core, two spend ten times the work waiting for each other.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_main_job_ends_with_an_sae_whose_card_is_confirmed_by_a_new_process(tmp_path):
    folder = tmp_path / "sae"
    table = run("examples/train.py", "--output_dir", str(folder), "--disable_tqdm")
    assert "loss recovered" in table and "untrained" in table

    saved = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "training_curve.png", "feature_density.png"} <= saved
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["n_tokens"] >= 195_000
    untrained, pca = metrics["baselines"]["untrained"], metrics["baselines"]["pca"]
    assert 1 - metrics["loss_recovered"] <= 0.35 * (1 - untrained["loss_recovered"])
    assert metrics["explained_variance"] > max(untrained["explained_variance"], pca["explained_variance"]) + 0.05

    said = re.search(r"^loss recovered: (\d\.\d{4})$", run("examples/evaluate.py", str(folder)), re.M)
    assert said and abs(float(said[1]) - metrics["loss_recovered"]) <= 1.5e-4
