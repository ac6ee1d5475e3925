import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90], ids=["A100", "H100"])
def test_every_kernel_compiles_for_a_gpu_and_uses_no_atomics(capability: int, tmp_path):
    """In a process of its own: where kernels are interpreted they are not compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-m", "tests.functional.kernels.compile_for_cuda", str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(compiled) == 26 and all(".visible .entry" in kernel["ptx"] for kernel in compiled)
    assert not [kernel["kernel"] for kernel in compiled if re.search(r"\b(atom|red)\.", kernel["ptx"])]
