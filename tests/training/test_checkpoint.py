import json

import pytest
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hfsae import SAE, TopKSAE
from hfsae.training.checkpoint import find_checkpoint, last_checkpoint, load_learner, save_checkpoint
from tests.full_disk import room_for
from tests.training.tiny import ARCHITECTURES, BATCH, contents, make_learner, make_sae, sparse_rows


def trained(architecture="topk", steps=2, name="", **options):
    learner = make_learner(make_sae(architecture, **options))
    learner.name = name
    for step in range(steps):
        learner.step([sparse_rows(BATCH, seed=step)], step)
    return learner


def save(folder, step, learners=None, keep=None):
    learners = {"": trained()} if learners is None else learners
    run = {"step": step, "saes": list(learners)}
    return save_checkpoint(folder, step, learners, {"window": step}, run, Accelerator(cpu=True), keep)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_holds_everything_by_name_and_nothing_pickled(tmp_path):
    learners = {name: trained(name, name=name) for name in ("topk", "gated")}
    folder = save(tmp_path, 7, learners)
    assert folder == tmp_path / "checkpoint-7" and names(tmp_path) == ["checkpoint-7"]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    of_each = ("SHA256SUMS", "config.json", "model.safetensors", "state.json", "state.safetensors")
    assert files == {
        "SHA256SUMS",
        "run.json",
        "stream-rank-0.json",
        *(f"saes/{name}/{file}" for name in learners for file in of_each),
    }
    assert json.loads((folder / "run.json").read_text())["step"] == 7
    assert json.loads((folder / "stream-rank-0.json").read_text()) == {"window": 7}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_learner_comes_back_from_a_checkpoint_bit_by_bit(tmp_path, architecture):
    learner = trained(architecture)
    folder = save(tmp_path, 2, {"": learner})
    fresh = make_learner(make_sae(architecture, rows=sparse_rows(100, seed=5)))
    load_learner(folder, fresh)
    assert contents(save(tmp_path / "again", 2, {"": fresh})) == contents(folder)


def test_an_sae_too_large_for_one_file_of_transformers_comes_back_too(tmp_path, monkeypatch):
    """Which cuts weights into several from 50 GB on."""

    def save_in_pieces(sae, *args, max_shard_size="1KB", **kwargs):
        return save_whole(sae, *args, max_shard_size=max_shard_size, **kwargs)

    save_whole = PreTrainedModel.save_pretrained
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_in_pieces)
    learner = trained()
    fresh = make_learner(make_sae("topk", rows=sparse_rows(100, seed=5)))
    load_learner(save(tmp_path, 2, {"": learner}), fresh)
    assert all(torch.equal(tensor, fresh.weights()[name]) for name, tensor in learner.weights().items())


def test_the_sae_of_a_checkpoint_can_be_used(tmp_path):
    learner = trained()
    sae = SAE.from_pretrained(save(tmp_path, 2, {"": learner}) / "saes")
    rows = sparse_rows(5)
    assert isinstance(sae, TopKSAE) and torch.equal(sae.encode(rows), learner.sae.encode(rows))


def test_only_the_newest_are_kept(tmp_path):
    learners = {"": trained()}
    for step in (5, 50, 500):
        save(tmp_path, step, learners, keep=2)
    assert names(tmp_path) == ["checkpoint-50", "checkpoint-500"]
    save(tmp_path, 1000, learners, keep=None)
    assert names(tmp_path) == ["checkpoint-1000", "checkpoint-50", "checkpoint-500"]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1000"


def test_a_step_that_is_passed_again_takes_the_place_of_the_first_time(tmp_path):
    save(tmp_path, 5, {"": trained(steps=1)})
    folder = save(tmp_path, 5, {"": trained(steps=2)})
    assert names(tmp_path) == ["checkpoint-5"]
    assert contents(folder) == contents(save(tmp_path / "other", 5, {"": trained(steps=2)}))


@pytest.mark.parametrize("size", [0, 3000, 8000])
def test_a_checkpoint_that_cannot_be_written_is_absent_and_the_one_before_stays_whole(tmp_path, size):
    """There is room for no file, for JSON but not for weights, for weights but not for Adam's moments."""
    learners = {"": trained()}
    before = contents(save(tmp_path, 5, learners, keep=1))
    with pytest.raises(OSError, match="could not write checkpoint-6 .* newest whole checkpoint is checkpoint-5"):
        with room_for(size):
            save(tmp_path, 6, learners, keep=1)
    assert names(tmp_path) == ["checkpoint-5"]
    assert contents(tmp_path / "checkpoint-5") == before
    load_learner(tmp_path / "checkpoint-5", trained(steps=0))


def test_the_first_checkpoint_can_fail_too(tmp_path):
    with (
        pytest.raises(OSError, match="could not write checkpoint-5 .* There is no earlier checkpoint"),
        room_for(3000),
    ):
        save(tmp_path, 5)
    assert names(tmp_path) == []


def test_what_a_killed_process_left_half_written_is_no_checkpoint_and_in_nobodys_way(tmp_path):
    save(tmp_path, 5)
    (tmp_path / ".unfinished-checkpoint-6" / "saes").mkdir(parents=True)
    (tmp_path / ".unfinished-checkpoint-6" / "saes" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoint-x").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    folder = save(tmp_path, 6)
    assert not (folder / "saes" / "model.safetensors").read_bytes() == b"half"
    assert ".unfinished-checkpoint-6" not in names(tmp_path)


def test_a_checkpoint_is_found_by_name_or_as_the_last(tmp_path):
    learners = {"": trained()}
    folders = [save(tmp_path, step, learners) for step in (5, 50)]
    assert find_checkpoint(tmp_path, "last") == folders[1]
    assert find_checkpoint(tmp_path, str(folders[0])) == folders[0]


@pytest.mark.parametrize("wanted", ["last", "runs/checkpoint-3"])
def test_nothing_to_resume_from_is_an_error_that_says_where_it_looked(tmp_path, wanted):
    looked_for = rf"checkpoint-\* in {tmp_path}" if wanted == "last" else wanted
    with pytest.raises(FileNotFoundError, match=f"no checkpoint to resume from: looked for {looked_for}"):
        find_checkpoint(tmp_path, wanted)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (("topk", {"k": 5}), "k was 4 and is 5"),
        (("batch_topk", {}), "model_type was 'hfsae_topk' and is 'hfsae_batch"),
    ],
)
def test_another_sae_than_that_of_the_checkpoint_is_refused(tmp_path, other, difference):
    folder = save(tmp_path, 5)
    architecture, options = other
    with pytest.raises(ValueError, match=f"The SAE of the checkpoint is another one.*{difference}"):
        load_learner(folder, trained(architecture, steps=0, **options))
