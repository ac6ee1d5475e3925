"""Files and folders of this machine in records."""

import os
from pathlib import Path

import pytest

from hfsae.folders import can_be_file, can_be_folder, found_again, in_full, make_folder, new_folder


def test_what_is_here_is_written_down_in_full_and_an_id_of_the_hub_stays(tmp_path, monkeypatch):
    (tmp_path / "org" / "lm").mkdir(parents=True)
    (tmp_path / "data.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert in_full("org/lm") == in_full("./org/lm") == in_full("~/org/lm") == str(tmp_path / "org" / "lm")
    assert in_full("data.jsonl") == str(tmp_path / "data.jsonl")
    assert in_full("org/other") == "org/other" and in_full("./nothere") == "./nothere"


def test_places_are_found_where_a_tree_was_moved(tmp_path):
    before, now = tmp_path / "old" / "runs" / "x", tmp_path / "new" / "runs" / "x"
    for path in ("new/lm", "new/runs/x", "new/texts", "elsewhere"):
        (tmp_path / path).mkdir(parents=True)
    record = {
        "lm": str(tmp_path / "old" / "lm"),
        "files": [str(tmp_path / "old" / "texts" / "*.jsonl"), str(tmp_path / "elsewhere")],
        "gone": str(tmp_path / "old" / "gone"),
        "name": "org/lm",
        "steps": 3,
    }
    assert found_again(record, str(before), now) == {
        "lm": str(tmp_path / "new" / "lm"),
        "files": [str(tmp_path / "new" / "texts" / "*.jsonl"), str(tmp_path / "elsewhere")],
        "gone": record["gone"],
        "name": "org/lm",
        "steps": 3,
    }
    (tmp_path / "old" / "lm").mkdir(parents=True)
    assert found_again(record, str(before), now)["lm"] == record["lm"]  # a copy was made: the first is still there
    for odd in (None, 3, "runs/x", ["/"]):
        assert found_again(record, odd, now) == record


def test_the_way_from_a_record_may_be_relative_now(tmp_path, monkeypatch):
    (tmp_path / "new" / "lm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "new")
    moved = found_again(str(tmp_path / "old" / "lm"), str(tmp_path / "old" / "runs"), "runs")
    assert moved == os.path.join(tmp_path, "new", "lm")


def test_where_nothing_can_be_written_is_said_before():
    """Not even root may make files among those of the kernel."""
    for look in (can_be_folder, can_be_file):
        with pytest.raises(
            PermissionError, match="nothing can be written in /proc .*: make it writable, or name anot"
        ):
            look("/proc/hfsae/new/er")


def test_what_is_in_the_way_of_a_file_or_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for free in ("folder", "new", "folder/deep/er"):
        can_be_folder(tmp_path / free)
    for free in ("file", "new.html", "folder/new.html", "new/new.html"):
        can_be_file(tmp_path / free)
    for taken in ("file", "file/deep/er"):
        with pytest.raises(FileExistsError, match="file is a file, where a folder is to be written"):
            can_be_folder(tmp_path / taken)
    with pytest.raises(FileExistsError, match="folder is a folder, where a file is to be written"):
        can_be_file(tmp_path / "folder")
    with pytest.raises(FileExistsError, match="file is a file, where a folder is to be written"):
        can_be_file(tmp_path / "file" / "new.html")


def test_what_is_no_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing" / "there")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        make_folder(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="inner is a file, or lies below one"):
        make_folder(tmp_path / "file" / "inner")
    with pytest.raises(NotADirectoryError, match="link is a link to nothing"):
        make_folder(tmp_path / "link")


def test_where_nothing_can_be_written_is_named():
    """Not even root may make files among those of the kernel."""
    for place in ("/proc", "/proc/hfsae/new"):
        with pytest.raises(PermissionError, match="nothing can be written in /proc .*: make it writable, or name ano"):
            make_folder(Path(place))
        with pytest.raises(PermissionError, match="nothing can be written in /proc "), new_folder(place):
            pass


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
