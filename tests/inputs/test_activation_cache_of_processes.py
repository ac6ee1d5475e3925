"""A cache written by several processes, one of which is killed, against the one written by one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfsae.data import CachedActivations
from hfsae.inputs.activation_cache import cache_activations
from tests.inputs.test_activation_cache import cache_contents, place  # noqa: F401
from tests.processes import free_port
from tests.training.tiny import arguments

pytestmark = pytest.mark.slow

ROWS = 120 * 32
WRITE = (
    "import os, sys, torch\n"
    "torch.set_num_threads(1)\n"
    "from hfsae.inputs.activation_cache import cache_activations\n"
    "from hfsae.arguments.command_options import parse_training_arguments\n"
    "from tests.training.killed import kill_at_rename\n"
    "victim, number = map(int, sys.argv[1:3])\n"
    "if int(os.environ['RANK']) == victim:\n"
    "    kill_at_rename(number, after=False)\n"
    "cache_activations(parse_training_arguments(sys.argv[3:]), shard_rows=50)\n"
)


def launched(script: Path, folder: Path, config: Path, processes: int, victim: int = -1, at: int = 0):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    options = [str(victim), str(at), str(config), "--output_dir", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, *launcher, str(script), *options]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def prepared(place, tmp_path_factory):  # noqa: F811
    """The script that each process runs, its config, and the cache that one process has written."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "write.py").write_text(WRITE)
    args = arguments(folder / "one", steps=ROWS // 32, **place)
    options = args.given()
    del options["output_dir"]
    (folder / "config.yaml").write_text(json.dumps(options))
    cache_activations(args, shard_rows=50)
    return folder / "write.py", folder / "config.yaml", cache_contents(folder / "one")


def test_four_processes_write_the_bytes_of_one(prepared, tmp_path):
    script, config, one = prepared
    writing = launched(script, tmp_path, config, processes=4)
    said = writing.communicate(timeout=120)[1]
    assert writing.returncode == 0, said
    assert cache_contents(tmp_path) == one and CachedActivations(tmp_path).description.rows == ROWS


def test_a_writer_that_is_killed_ends_the_others_and_any_number_goes_on(prepared, tmp_path):
    script, config, one = prepared
    writing = launched(script, tmp_path, config, processes=2, victim=1, at=9)
    said = writing.communicate(timeout=120)[1]
    assert writing.returncode != 0 and "Signal 9 (SIGKILL)" in said
    shards = {name for name in cache_contents(tmp_path) if name.startswith("rows-")}
    whole = {name for name in one if name.startswith("rows-")}
    assert shards and shards < whole
    assert "rows-00038.safetensors" in shards  # the killed one had begun in the middle
    with pytest.raises(ValueError, match="is not whole"):
        CachedActivations(tmp_path)
    going_on = launched(script, tmp_path, config, processes=3)
    said = going_on.communicate(timeout=120)[1]
    assert going_on.returncode == 0, said
    left = cache_contents(tmp_path).keys() - one.keys()
    assert all(name.endswith(".part") for name in left)
    assert {name: content for name, content in cache_contents(tmp_path).items() if name not in left} == one


def test_a_second_launch_into_the_same_folder_is_refused_with_the_name_of_the_first(prepared, tmp_path):
    script, config, one = prepared
    first = launched(script, tmp_path, config, processes=1, victim=0, at=0)
    until = time.monotonic() + 60
    while not (tmp_path / "cache.json").exists() and time.monotonic() < until:
        time.sleep(0.05)
    held = json.loads((tmp_path / ".in-use.json").read_text())["pid"]
    os.kill(held, signal.SIGSTOP)
    try:
        done = launched(script, tmp_path, config, processes=2)
        said = done.communicate(timeout=120)[1]
    finally:
        os.kill(held, signal.SIGCONT)
    assert done.returncode != 0 and f"is in use by process {held} on" in said
    first.communicate(timeout=120)
    assert first.returncode == 0 and cache_contents(tmp_path) == one
