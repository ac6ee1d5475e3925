"""The standard library as a dataset: what belongs to it, how it is split, how it is read."""

import sysconfig
from pathlib import Path
from typing import Any

import pytest

from hfsae.data import stdlib_text
from hfsae.data.stdlib_text import stdlib_dataset, stdlib_digest, stdlib_documents, stdlib_files

STDLIB = Path(sysconfig.get_paths()["stdlib"])
SPLITS = ("train", "held_out")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that this Python takes for its standard library."""
    paths = sysconfig.get_paths() | {"stdlib": str(tmp_path)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    return tmp_path


def add(library: Path, name: str, source: bytes = b"pass\n") -> None:
    (library / name).parent.mkdir(parents=True, exist_ok=True)
    (library / name).write_bytes(source)


def names(split: Any, root: Path = STDLIB) -> list[str]:
    return [path.relative_to(root).as_posix() for path in stdlib_files(split)]


def test_the_splits_share_no_file_and_about_a_fifth_is_held_out() -> None:
    train, held_out = names("train"), names("held_out")
    assert set(train).isdisjoint(held_out)
    assert len(set(train)) == len(train) and len(set(held_out)) == len(held_out)
    assert 0.15 < len(held_out) / (len(train) + len(held_out)) < 0.3


def test_well_known_modules_are_there_and_tests_packages_and_tables_are_not() -> None:
    found = set(names("train")) | set(names("held_out"))
    assert {"argparse.py", "json/decoder.py", "asyncio/base_events.py", "unittest/mock.py"} <= found
    folders = {folder for name in found for folder in name.split("/")[:-1]}
    assert folders.isdisjoint(
        {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}
    )
    assert not any("_sysconfigdata" in name for name in found)


def test_the_splits_hold_enough_text_to_train_on_and_to_measure_with() -> None:
    n_bytes = {split: sum(len(document["text"].encode()) for document in stdlib_documents(split)) for split in SPLITS}
    assert n_bytes["train"] > 5_000_000
    assert n_bytes["held_out"] > 1_200_000


def test_nothing_but_sources_outside_the_skipped_folders_is_read(library: Path) -> None:
    for name in (
        "kept.py",
        "package/testing.py",
        "package/config.py",
        "package/notes.txt",
        "test/regrtest.py",
        "package/tests/x.py",
        "idlelib/idle_test/x.py",
        "site-packages/torch/x.py",
        "dist-packages/x.py",
        "encodings/cp1252.py",
        "config-3.11-x86_64-linux-gnu/python-config.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
    ):
        add(library, name)
    found = names("train", library) + names("held_out", library)
    assert sorted(found) == ["kept.py", "package/config.py", "package/testing.py"]


def test_a_file_keeps_its_split_whatever_it_and_its_neighbours_contain(library: Path) -> None:
    for module in range(40):
        add(library, f"module_{module}.py")
    before = {split: names(split, library) for split in SPLITS}
    for module in range(40):
        add(library, f"module_{module}.py", b"changed = True\n")
        add(library, f"newer/module_{module}.py")
    for split in SPLITS:
        assert before[split]
        assert [name for name in names(split, library) if "/" not in name] == before[split]


def test_files_come_in_the_order_of_their_relative_paths() -> None:
    for split in SPLITS:
        assert names(split) == sorted(names(split))
        assert [document["path"] for document in stdlib_documents(split)] == [
            name for name in names(split) if (STDLIB / name).stat().st_size
        ]


def test_line_ends_and_declared_encodings_are_read_as_python_reads_them(library: Path) -> None:
    add(library, "crlf.py", b"a = 1\r\nb = 2\r\n")
    add(library, "latin.py", b"# -*- coding: latin-1 -*-\nname = '\xe9'\n")
    add(library, "marked.py", b"\xef\xbb\xbfname = '\xc3\xa9'\n")
    add(library, "empty.py", b"")
    texts = {document["path"]: document["text"] for split in SPLITS for document in stdlib_documents(split)}
    assert texts == {
        "crlf.py": "a = 1\nb = 2\n",
        "latin.py": "# -*- coding: latin-1 -*-\nname = 'é'\n",
        "marked.py": "name = 'é'\n",
    }


def test_the_digest_changes_with_a_text_a_path_and_where_one_ends_and_the_other_begins(library: Path) -> None:
    train = [f"m{number}.py" for number in range(20) if stdlib_text._split_of(f"m{number}.py") == "train"]
    add(library, train[0], b"a = 1\n")
    digests = [stdlib_digest("train")]
    add(library, train[0], b"a = 2\n")
    digests.append(stdlib_digest("train"))
    (library / train[0]).rename(library / train[1])
    digests.append(stdlib_digest("train"))
    add(library, train[1], b"a = 1\n")
    (library / train[1]).rename(library / train[0])
    assert len(set(digests)) == 3
    assert stdlib_digest("train") == digests[0]


def test_the_dataset_has_one_row_a_document() -> None:
    dataset = stdlib_dataset("held_out")
    assert dataset.column_names == ["text", "path"]
    assert dataset.to_list() == [dict(document) for document in stdlib_documents("held_out")]


def test_an_unknown_split_is_refused_with_the_names_of_both() -> None:
    with pytest.raises(ValueError, match="'validation'.*'train', 'held_out'"):
        stdlib_files("validation")  # pyright: ignore[reportArgumentType]


def test_a_python_without_sources_is_reported_with_the_folder_that_was_searched(library: Path) -> None:
    with pytest.raises(FileNotFoundError, match=library.name):
        stdlib_files("train")
