"""One writer a folder."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfsae.in_use import FolderInUseError, in_use

HOLD = """
import sys, time
from hfsae.in_use import in_use
with in_use(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_who_the_first_is(tmp_path: Path):
    with in_use(tmp_path / "run"):
        with pytest.raises(FolderInUseError, match=f"in use by process {os.getpid()} on .*since"):
            with in_use(tmp_path / "run"):
                pass
    with in_use(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_a_killed_process_holds_nothing_any_more(tmp_path: Path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(FolderInUseError, match=f"process {holder.pid} "):
        with in_use(tmp_path):
            pass
    holder.kill()
    holder.wait()
    deadline = time.monotonic() + 10
    while True:
        try:
            with in_use(tmp_path):
                break
        except FolderInUseError:
            assert time.monotonic() < deadline
