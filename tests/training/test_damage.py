"""Runs and checkpoints whose files changed, and two runs that want one folder."""

import logging
import shutil
from pathlib import Path

import pytest

from hfsae import SAE
from hfsae.in_use import FolderInUseError
from hfsae.storage import DamagedFileError
from hfsae.training.checkpoint import find_checkpoint
from tests.training.tiny import At, sparse_rows, trainer

INPUTS = {"activations": sparse_rows(400)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer(folder, inputs=INPUTS, save_steps=4).train()
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A run with checkpoints after 8 and 12 steps."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped bit": flip,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}
FILES = (
    *("run.json", "stream-rank-0.json", "SHA256SUMS"),
    *(f"saes/{name}" for name in ("config.json", "model.safetensors", "state.safetensors", "state.json")),
)


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_changed_is_passed_over_for_the_one_before(run: Path, name: str, kind: str, caplog):
    if (name, kind) == ("SHA256SUMS", "gone"):
        pytest.skip("as an earlier version wrote it")
    DAMAGE[kind](run / "checkpoint-12" / name)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(run, "last") == run / "checkpoint-8"
    said = " ".join(caplog.messages)
    assert "checkpoint-12 is passed over" in said and "going on from checkpoint-8" in said
    assert Path(name).name in said or "SHA256SUMS" in said
    with pytest.raises(OSError):
        find_checkpoint(run, str(run / "checkpoint-12"))


def test_a_run_goes_on_from_the_newest_whole_checkpoint_to_the_same_end(run: Path):
    end = (run / "model.safetensors").read_bytes()
    DAMAGE["flipped bit"](run / "checkpoint-12/saes/state.safetensors")
    output = trainer(run, inputs=INPUTS, save_steps=4).train(resume_from_checkpoint=True)
    assert output.completed and (run / "model.safetensors").read_bytes() == end
    assert find_checkpoint(run, "last") == run / "checkpoint-12"


def test_where_no_checkpoint_is_whole_the_file_of_the_newest_is_named(run: Path):
    for step in (8, 12):
        DAMAGE["half"](run / f"checkpoint-{step}/saes/model.safetensors")
    with pytest.raises(DamagedFileError, match=r"no whole checkpoint.*checkpoint-12/saes/model\.safetensors"):
        trainer(run, inputs=INPUTS).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"tokens": "many"}', b"\xff"])
def test_a_broken_old_run_ends_no_fresh_one(run: Path, content: bytes):
    (run / "checkpoint-8/run.json").write_bytes(content)
    with pytest.raises(FileExistsError, match="holds another run"):
        trainer(run, inputs=INPUTS).train()
    output = trainer(run, inputs=INPUTS, overwrite_output_dir=True, save_steps=4, save_total_limit=2).train()
    assert output.completed and not (run / "checkpoint-4").exists()


def test_checkpoints_of_earlier_versions_without_sums_are_gone_on_from(run: Path):
    for path in run.rglob("SHA256SUMS"):
        path.unlink()
    assert find_checkpoint(run, "last") == run / "checkpoint-12"
    (run / "checkpoint-12/saes/state.json").write_text("{")
    assert find_checkpoint(run, "last") == run / "checkpoint-8"


def test_two_runs_cannot_have_one_folder_and_the_first_loses_nothing(tmp_path: Path):
    told = []

    def second(**_: object) -> None:
        (tmp_path / ".unfinished-checkpoint-9").mkdir()  # what the first is writing
        for options in ({}, {"overwrite_output_dir": True}):
            with pytest.raises(FolderInUseError, match="in use by process") as caught:
                trainer(tmp_path, inputs=INPUTS, **options).train()
            told.append(caught.value)
        assert (tmp_path / ".unfinished-checkpoint-9").is_dir()

    output = trainer(tmp_path, inputs=INPUTS, callbacks=[At(3, second)], save_steps=4).train()
    assert output.completed and len(told) == 2 and SAE.from_pretrained(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".in-use")]


def test_an_output_folder_that_is_none_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing/here")
    for name, message in (("file", "is a file"), ("link", "a link to nothing")):
        with pytest.raises(NotADirectoryError, match=message):
            trainer(tmp_path / name, inputs=INPUTS).train()
    assert (tmp_path / "file").read_text() == "mine"


def test_files_of_a_run_can_be_read_by_whoever_the_umask_lets(run: Path):
    modes = {path.stat().st_mode & 0o777 for path in run.rglob("*") if path.is_file()}
    assert modes == {(run / "config.json").stat().st_mode & 0o777}
