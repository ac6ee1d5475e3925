"""Files that appear whole."""

import json
import os
import re
import subprocess
import sys
import time

import pytest

from hfsae import TopKSAEConfig
from hfsae.sae_folders import sae_folders
from hfsae.saving import BESIDE, files_at_once, folder_at_once, write_config, write_json
from hfsae.storage import NoRoomError
from tests.full_disk import room_for


def test_json_that_cannot_be_written_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text()) == {"x": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_files_replace_those_of_the_same_name_together_or_not_at_all(tmp_path):
    (tmp_path / "kept").write_text("old")
    with pytest.raises(RuntimeError), files_at_once(tmp_path) as beside:
        (beside / "kept").write_text("new")
        raise RuntimeError
    assert (tmp_path / "kept").read_text() == "old"
    with files_at_once(tmp_path) as beside:
        (beside / "kept").write_text("new")
        (beside / "more").write_text("more")
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"kept": "new", "more": "more"}


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    told = r" could not be written: File too large\. Make room there, or choose another folder\."
    with pytest.raises(NoRoomError, match=re.escape(str(tmp_path / "a.json")) + told), room_for(10):
        write_json(tmp_path / "a.json", {"x": "y" * 100})
    with pytest.raises(NoRoomError, match=re.escape(str(tmp_path)) + told), room_for(10):
        with files_at_once(tmp_path) as beside:
            (beside / "b").write_text("b" * 100)
    with pytest.raises(NoRoomError, match=re.escape(str(tmp_path / "c")) + told), room_for(10):
        with folder_at_once(tmp_path / "c") as beside:
            (beside / "d").write_text("d" * 100)
    assert list(tmp_path.iterdir()) == []


def test_a_config_is_written_where_transformers_reads_it(tmp_path):
    write_config(TopKSAEConfig(d_in=4, n_features=8, k=2), tmp_path)
    assert TopKSAEConfig.from_pretrained(tmp_path).n_features == 8


def test_what_a_killed_process_left_beside_a_folder_goes_and_that_of_a_living_one_stays(tmp_path):
    writing = "from pathlib import Path; from hfsae.saving import folder_at_once; import os, signal\n"
    killed = (
        writing
        + "with folder_at_once(Path('new')) as f: (f / 'a').write_text('a'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", killed], cwd=tmp_path, check=False)
    (left,) = tmp_path.iterdir()
    assert (left / "a").is_file()
    others = [
        left.with_name(f"{left.stem.rpartition('.')[0]}.{os.getppid()}.part"),
        left.with_name(f"{left.stem.rpartition('.')[0]}.mine.part"),
        tmp_path / f".new.another-machine.{left.stem.rpartition('.')[2]}.part",
        tmp_path / f".newer.{left.name[5:]}",
    ]
    for other in others:
        other.mkdir()
    with folder_at_once(tmp_path / "new") as mine:
        (mine / "weights").write_text("mine")
    assert set(tmp_path.iterdir()) == {*others, tmp_path / "new"}


def test_files_that_a_killed_process_left_are_no_saes_and_go_after_a_day(tmp_path):
    old, new = (tmp_path / f"{BESIDE}{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    for path in (old, old / "config.json"):
        os.utime(path, (0, 0))
    with files_at_once(tmp_path) as beside:
        (beside / "config.json").write_text("{}")
        assert sae_folders(tmp_path) == []
    assert sae_folders(tmp_path) == [""] and new.is_dir() and not old.exists()


def test_what_an_earlier_version_left_without_a_machine_goes_after_a_day(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old, new, alive = (tmp_path / name for name in ("old", "new", "alive"))
    for folder, pid in ((old, dead.pid), (new, dead.pid), (alive, os.getpid())):
        left = folder.with_name(f".{folder.name}.{pid}.part")
        left.mkdir()
        (left / "weights").write_text("half")
        days = 0 if folder is new else 2
        for path in (left / "weights", left):
            os.utime(path, (time.time() - days * 86400,) * 2)
        with folder_at_once(folder) as mine:
            (mine / "weights").write_text("whole")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"old", "new", "alive", f".new.{dead.pid}.part", f".alive.{os.getpid()}.part"}


def test_an_empty_folder_is_filled_and_two_processes_write_no_mixture(tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    with pytest.raises(OSError), folder_at_once(tmp_path / "new") as mine:
        (mine / "weights").write_text("mine")
        with monkeypatch.context() as other:
            other.setattr("os.getpid", lambda: -1)
            with folder_at_once(tmp_path / "new") as its:
                (its / "weights").write_text("its")
        (mine / "card").write_text("mine")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["new", "new/weights"]
    assert (tmp_path / "new" / "weights").read_text() == "its"
