"""What was written is what is read; what is not says so, with the file's name and a cure."""

import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hfsae.storage import (
    SUMS,
    DamagedFileError,
    appearing_whole,
    check_sums,
    is_deep,
    read_header,
    read_json,
    read_sums,
    read_tensors,
    sum_up,
    write_tensors,
)

TENSORS = {"a": torch.arange(600.0).view(20, 30), "b": torch.ones(3)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 2412\n"
DAMAGE = {
    "empty": (lambda whole: b"", "is empty"),
    "half": (lambda whole: whole[: len(whole) // 2], "damaged or cut off"),
    "one byte short": (lambda whole: whole[:-1], "damaged or cut off"),
    "git-lfs": (lambda whole: POINTER, "git lfs pull"),
    "web page": (lambda whole: b"\n<!DOCTYPE html><html>Log in</html>", "web page.*token"),
    "json": (lambda whole: b'{"error": "Not found"}', "is JSON, not weights"),
    "garbage that begins like json": (lambda whole: b"{" + bytes(range(200, 256)) * 9, "damaged or cut off"),
    "pickle": (lambda whole: b"PK\x03\x04" + bytes(200), "pickle under another name"),
    "garbage": (lambda whole: bytes(range(200, 256)) * 9, "damaged or cut off"),
}


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("read", [read_tensors, read_header])
def test_what_is_no_whole_file_is_named_with_a_cure(tmp_path: Path, kind: str, read):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    damage, message = DAMAGE[kind]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFileError, match=f"(?s)model.safetensors .*{message}"):
        read(path)


def test_a_file_that_is_absent_is_not_damaged(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "x.safetensors")


def test_files_follow_the_umask(tmp_path: Path, umask: int):
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o666 & ~umask
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["a"], TENSORS["a"])


def test_sums_are_those_of_sha256sum_and_find_every_flipped_bit(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    for name in ("a.json", "inner/b.bin"):
        (tmp_path / name).write_bytes(os.urandom(64))
    sum_up(tmp_path, ["a.json", "inner/b.bin"])
    check = ["sha256sum", "--check", "--strict", SUMS]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 0
    check_sums(tmp_path)
    for name in ("a.json", "inner/b.bin", SUMS):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(DamagedFileError):
            check_sums(tmp_path)
        path.write_bytes(whole)
    (tmp_path / "a.json").unlink()
    with pytest.raises(DamagedFileError, match=r"a\.json is missing"):
        check_sums(tmp_path)


def test_sums_that_are_none_are_refused(tmp_path: Path):
    assert read_sums(tmp_path) == {}
    for content, message in (("not a sum\n", "no line of sha256sum"), ("", "cut off"), ("0" * 64, "cut off")):
        (tmp_path / SUMS).write_text(content)
        with pytest.raises(DamagedFileError, match=message):
            read_sums(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"a":' * 200 + "1" + "}" * 200, "[" * 100_000])
def test_json_that_is_cut_off_deep_or_of_another_kind_names_its_file(tmp_path: Path, content: str):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"run\.json"):
        read_json(tmp_path / "run.json")


def test_depth_is_that_of_lists_and_dictionaries():
    assert not is_deep({"a": [1, {"b": 2}]}, 3) and is_deep({"a": [1, {"b": 2}]}, 2)
    assert not is_deep(1, 0) and is_deep([], 0)


# -- files that appear whole ------------------------------------------------------------------------------------------
def test_a_file_appears_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    with appearing_whole(path) as beside:
        beside.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), appearing_whole(path) as beside:
        beside.write_text("tw")
        raise RuntimeError
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]
