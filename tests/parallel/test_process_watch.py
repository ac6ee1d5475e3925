"""Processes that are killed, fall silent or fail: the others end soon, name them, and leave a whole checkpoint.

They are started one by one, as on several machines: no launcher is there to end what is left.
"""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from accelerate import Accelerator

from hfsae.parallel.process_watch import ProcessWatch, _Watched
from hfsae.training.checkpoint import check_whole, last_checkpoint
from tests.processes import free_port
from tests.training.tiny import trainer


def started(processes: int, *command: str, **pipes: int) -> list[subprocess.Popen[str]]:
    """So many Python processes that run one command as ranks of one group; `pipes` are `stdout` and `stderr`."""
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
            **pipes,
        )
        for rank in range(processes)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, lost, why",
    [
        ("one-dies", 1, "has died without a word: it was killed, ran out of memory, or its machine is gone"),
        ("first-dies", 0, "has died without a word"),
        ("one-is-silent", 1, "has died without a word"),
        ("one-fails", 1, "has ended with ValueError: this process alone has had enough"),
    ],
)
def test_the_others_end_with_the_name_of_the_lost_and_a_whole_checkpoint(tmp_path, case, lost, why):
    both = started(2, "-m", "tests.training.two_processes", str(tmp_path), case, stderr=subprocess.PIPE)
    left = both[1 - lost]
    try:
        said = left.communicate(timeout=90)[1]
        assert left.returncode == 1
        assert f"process {lost} of 2, on {platform.node()} (pid {both[lost].pid}), {why}" in said
        folder = tmp_path / case
        assert f"The last good checkpoint is {folder / 'checkpoint-4'}" in said
        assert last_checkpoint(folder) == folder / "checkpoint-4"
        check_whole(folder / "checkpoint-4")
        if case == "one-dies":
            assert both[lost].wait() == -signal.SIGKILL
            going_on = trainer(folder, save_steps=4, training_tokens=20 * 64)
            assert going_on.train(resume_from_checkpoint=True).completed
    finally:
        for process in both:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_process_that_waits_for_ever_is_ended_too(tmp_path):
    """Its main thread is in a collective that nobody will answer, as NCCL's are."""
    waiting = (
        "import sys, time\n"
        "from accelerate import Accelerator\n"
        "from hfsae.parallel.process_watch import ProcessWatch\n"
        "with ProcessWatch(Accelerator(cpu=True), lambda: 'Nothing is left.'):\n"
        "    print('in', flush=True)\n"
        "    time.sleep(1000)\n"
    )
    all_of_them = started(3, "-c", waiting, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        for process in all_of_them:
            assert process.stdout is not None and process.stdout.readline() == "in\n"
        all_of_them[2].kill()
        killed_at = time.monotonic()
        for process in all_of_them[:2]:
            said = process.communicate(timeout=60)[1]
            assert (
                process.returncode == 1 and f"process 2 of 3, on {platform.node()} (pid {all_of_them[2].pid})" in said
            )
        assert time.monotonic() - killed_at < 30
    finally:
        for process in all_of_them:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_process_that_comes_late_or_leaves_early_is_not_lost(tmp_path):
    """Of processes that joined long ago one may have prepared something; at the end one may have more to do."""
    late = (
        "import os, time\n"
        "from accelerate import Accelerator\n"
        "from hfsae.parallel import process_watch\n"
        "process_watch._SILENT = 2.0\n"
        "accelerator = Accelerator(cpu=True)\n"
        "time.sleep(5 * int(os.environ['RANK']))\n"
        "with process_watch.ProcessWatch(accelerator, str):\n"
        "    time.sleep(6)\n"
        "accelerator.wait_for_everyone()\n"
    )
    both = started(2, "-c", late)
    assert [process.wait(timeout=90) for process in both] == [0, 0]


@pytest.mark.slow
def test_the_first_process_may_end_long_before_the_others(tmp_path):
    """The store that they watch each other by ends with it: that it had left is known by then."""
    early = (
        "import os, time\n"
        "from accelerate import Accelerator\n"
        "from hfsae.parallel.process_watch import ProcessWatch\n"
        "with ProcessWatch(Accelerator(cpu=True), str):\n"
        "    time.sleep(2 + 8 * int(os.environ['RANK']))\n"
        "if os.environ['RANK'] == '0':\n"
        "    os._exit(0)\n"
        "raise SystemExit(3)\n"
    )
    all_of_them = started(3, "-c", early)
    assert [process.wait(timeout=90) for process in all_of_them] == [0, 3, 3]


def test_a_clock_that_is_put_right_kills_nobody(tmp_path, monkeypatch):
    """The time of day at which a process began is then another one to whoever asks (psutil 7.2)."""
    (tmp_path / str(os.getpid())).symlink_to("/proc/self")
    clock = tmp_path / "stat"
    clock.write_text("btime 1700000000\n")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    began = psutil.Process().create_time()
    watched = _Watched({"host": platform.node(), "pid": os.getpid()})
    assert not watched.is_dead(silent=0)
    clock.write_text("btime 1700000003\n")
    assert psutil.Process().create_time() == began + 3
    assert not watched.is_dead(silent=0)


def test_one_process_by_itself_is_not_watched():
    with pytest.raises(KeyError), ProcessWatch(Accelerator(cpu=True), lambda: "") as watch:
        assert watch._thread is None
        raise KeyError
