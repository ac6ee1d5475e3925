"""Rules over the features of several processes, against the same rule over all features in one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hfsae.functional import TopK
from tests.training.picked import RULES, batches

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("picked")
    launching = ["tests.forked", str(request.param)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", *launching, "-m", "tests.training.picked", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("path", ["dense", "sparse", "counted"])
@pytest.mark.parametrize("kind", batches())
@pytest.mark.parametrize("name", RULES)
def test_they_pick_what_one_process_picks(found, name, kind, path):
    rule, pre = RULES[name], batches()[kind]
    picked = found[name, kind, path]
    if isinstance(rule, TopK) and kind in ("tied", "zero") and path != "counted":
        # Which of equals are taken does not matter, for no two tokens share a budget.
        assert torch.equal(picked.sum(1), torch.full((len(pre),), rule.k))
        assert torch.equal(pre[picked].view(-1, rule.k).sort().values, pre.topk(rule.k).values.flip(1))
    else:
        assert torch.equal(picked, rule.mask(pre))
