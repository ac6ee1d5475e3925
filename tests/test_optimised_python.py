"""`python -O` leaves assertions out, and changes nothing else."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hfsae

PACKAGE = Path(hfsae.__file__).parent
TRAINING = """
import sys, torch
from hfsae import SAE, SAETrainer, SAETrainingArguments, TopKSAEConfig

activations = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))
options = {"output_dir": sys.argv[1], "training_tokens": 2048, "train_batch_tokens": 256, "eval_tokens": 0}
args = SAETrainingArguments(**options, report_to="none", disable_tqdm=True)
SAETrainer(args=args, saes=TopKSAEConfig(d_in=16, n_features=32, k=4), activations=activations).train()
print(__debug__, SAE.from_pretrained(sys.argv[1]).W_dec.double().sum().item())
"""


def test_no_assertion_gives_a_name_to_anything():
    """Without the assertion the name would be unknown."""
    naming = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert) and any(isinstance(part, ast.NamedExpr) for part in ast.walk(node))
    ]
    assert not naming


@pytest.mark.slow
def test_training_gives_the_same_without_assertions(tmp_path):
    found = {}
    for flags in ([], ["-O"]):
        command = [sys.executable, *flags, "-c", TRAINING, str(tmp_path / f"run{len(flags)}")]
        done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        debug, total = done.stdout.split()[-2:]
        found[debug] = total
    assert found["True"] == found["False"]
