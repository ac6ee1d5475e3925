"""One writer a folder."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hfsae.in_use import FolderInUseError, in_use, make_folder, new_folder

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


def test_what_is_no_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing" / "there")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        make_folder(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="inner is a file, or lies below one"):
        make_folder(tmp_path / "file" / "inner")
    with pytest.raises(NotADirectoryError, match="link is a link to nothing"):
        make_folder(tmp_path / "link")


def test_a_folder_that_was_made_for_nothing_goes_again_and_any_other_stays(tmp_path: Path):
    with pytest.raises(ValueError, match="refused"), new_folder(tmp_path / "a" / "b"):
        raise ValueError("refused")
    assert not (tmp_path / "a").exists() and tmp_path.exists()
    with pytest.raises(ValueError, match="refused"), new_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "written").touch()
        raise ValueError("refused")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["written"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="refused"), new_folder(tmp_path / "mine"):
        raise ValueError("refused")
    assert (tmp_path / "mine").is_dir()
    with new_folder(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept").is_dir()
